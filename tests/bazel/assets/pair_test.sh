#!/bin/bash
# The file and the symlink to it read the same.
set -euo pipefail
[ $# -eq 2 ]
for file in "$@"; do [ "$(cat "$file")" = linked ]; done
