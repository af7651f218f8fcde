# Fills directory $1 with $2 pages in nested directories, an empty file, a name with a space, a
# program and a symlink. Sourced by the rule `page_tree`.
set -eu
for page in $(seq 1 "$2"); do
    chapter=$1/chapter-$((page % 7))/section-$((page % 3))
    mkdir -p "$chapter"
    seq "$page" $((page * 3)) > "$chapter/page-$page.txt"
done
: > "$1/empty"
echo spaced > "$1/a name"
printf '#!/bin/sh\necho ran\n' > "$1/program"
chmod +x "$1/program"
ln -s chapter-1/section-1/page-1.txt "$1/first"
