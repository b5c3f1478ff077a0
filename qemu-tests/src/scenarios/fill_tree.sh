# Fills the file system at $1 as use does: small and large files, holes, deletions with new data in their place.
set -eu
cd "$1"
mkdir -p docs/deep/er photos work
for n in $(seq 1 150); do head -c $((n * n * 37 % 90000)) /dev/urandom >"docs/file $n"; done
for n in $(seq 1 200); do echo "name $n" >"docs/deep/er/name-$n.txt"; done
for n in 1 2 3 4 5 6; do head -c 3000000 /dev/urandom >"photos/photo$n.jpg"; done
for n in $(seq 1 150); do [ $((n % 3)) = 0 ] || rm "docs/file $n"; done
rm photos/photo2.jpg photos/photo4.jpg
# Written a piece at a time, each beside the other: they lie in pieces.
for n in $(seq 1 60); do
    head -c 50000 /dev/urandom >>work/one
    head -c 50000 /dev/urandom >>work/two
done
rm work/one
head -c 8000000 /dev/urandom >work/into-the-holes
truncate -s 5000000 work/sparse
printf end | dd of=work/sparse bs=1 seek=4000000 conv=notrunc status=none
: >work/empty
