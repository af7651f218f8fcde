#!/bin/bash
# 60 parts, 150 pages, three other files, the pair, the symlinks followed, and an empty file.
set -euo pipefail
[ "$(wc -l < "$1")" -eq 217 ]
grep -q 'assets/pages/a name$' "$1"
