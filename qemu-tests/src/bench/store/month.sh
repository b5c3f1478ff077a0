# A month of use of the file system at $1: packages rebuilt and removed, logs grown and rotated, a database
# written to in places, new data from the folder $2.
set -eu
cd "$1"
fresh=$2
# An update gives each of its files a new place; most bytes of a rebuilt program are the old ones.
find usr/lib usr/bin -type f -size +8k | LC_ALL=C sort | awk 'NR % 12 == 5' | while IFS= read -r file; do
    cp -p "$file" "$file.dpkg-new"
    size=$(stat -c %s "$file")
    for at in 7 3 2; do
        printf 'rebuilt %s' "$at" | dd of="$file.dpkg-new" bs=1 seek=$((size / at)) conv=notrunc status=none
    done
    mv "$file.dpkg-new" "$file"
done
find usr/share -type f | LC_ALL=C sort | awk 'NR % 40 == 7' | tr '\n' '\0' | xargs -0 rm -f
mkdir -p var/log home/data
[ ! -e var/log/syslog ] || mv var/log/syslog var/log/syslog.1
seq 1 120000 | awk '{ printf "Nov %d host daemon[%d]: request %d took %d us\n", $1 / 4000, $1 % 977, $1, $1 * 7919 % 30011 }' >var/log/syslog
blocks=$(($(stat -c %s home/data/first-database) / 4096))
for at in $(seq 1 37 $((blocks - 1))); do
    printf 'row %s was changed' "$at" | dd of=home/data/first-database bs=1 seek=$((at * 4096)) conv=notrunc status=none
done
cp -r "$fresh/." home/data/
