# Fills the file system at $1 with the tree $2 in the order of the list $3 (names with NUL between them), as a
# disk is filled that has been in use: half of the files come while something large is in the way.
set -eu
target=$1 tree=$2 list=$3
half=$(tr -cd '\0' <"$list" | wc -c | awk '{ print int($1 / 2) }')
copy() { tar -C "$tree" --no-recursion --null -T - -cf - | tar -C "$target" -xf -; }
dd if=/dev/urandom of="$target/stale" bs=1M count="$4" status=none
head -z -n "$half" "$list" | copy
rm "$target/stale"
tail -z -n +"$((half + 1))" "$list" | copy
