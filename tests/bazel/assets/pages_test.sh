#!/bin/bash
# A tree arrives with its names, its executable bit and its symlink.
set -euo pipefail
[ "$(find -L "$1" -name 'page-*.txt' | wc -l)" -eq 150 ]
[ "$(cat "$1/a name")" = spaced ]
[ -e "$1/empty" ] && [ ! -s "$1/empty" ]
[ "$("$1/program")" = ran ]
cmp "$1/first" "$1/chapter-1/section-1/page-1.txt"
