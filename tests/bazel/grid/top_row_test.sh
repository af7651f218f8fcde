#!/bin/bash
# The topmost row has eight numbers, all below the modulus.
set -euo pipefail
numbers=$("$1")
[ "$(wc -l <<<"$numbers")" -eq 8 ]
for number in $numbers; do [ "$number" -lt 65521 ]; done
