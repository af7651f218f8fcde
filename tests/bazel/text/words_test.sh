#!/bin/bash
# The program's report equals the golden one, here and as the genrule made it.
set -euo pipefail
diff -u "$3" <("$1" < "$2")
diff -u "$3" "$4"
