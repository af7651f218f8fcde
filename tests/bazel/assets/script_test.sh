#!/bin/bash
# What an action made executable can be executed.
set -euo pipefail
[ "$("$1")" = "made by an action" ]
