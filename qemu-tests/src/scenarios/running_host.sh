# What the running host does, as root of a Debian with systemd, udev and LVM. /dev/vdb is an empty disk with one
# partition, /dev/vdc another; /agent is the agent. What the scenario wants to know is left in /lab.
set -eu
trap 'echo "lab: FAILED with $?"; sync; systemctl --no-block poweroff' EXIT
mkdir -p /lab
for card in /sys/class/net/e*; do
    card=${card##*/}
    ip link set "$card" up
    ip address add 10.77.0.50/24 dev "$card"
done
pvcreate -q /dev/vdb1
vgcreate -q office /dev/vdb1
lvcreate -q --yes -L 320M -n data office
mke2fs -q -t ext4 /dev/office/data
mkdir /data
mount /dev/office/data /data
mkdir /data/before /data/busy
for n in $(seq 1 60); do head -c $((n * 9973)) /dev/urandom >"/data/before/file $n"; done
ln -s 'file 3' /data/before/link
chmod 640 '/data/before/file 5'
chown 1000:1000 '/data/before/file 6'
head -c 60000000 /dev/urandom >/data/before/large
(cd /data/before && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum) >/lab/before
sync -f /data/before

# Somebody works on it all the time: files come, grow and go.
(
    n=0
    while :; do
        n=$((n + 1))
        head -c 200000 /dev/urandom >"/data/busy/$((n % 40))"
        echo "$n" >>/data/busy/log
        [ $((n % 7)) != 0 ] || rm -f "/data/busy/$(((n + 20) % 40))"
        [ $((n % 5)) != 0 ] || sync -f /data/busy
    done
) &
writer=$!
(
    while :; do
        lvs --noheadings -o lv_name,origin,snap_percent office >>/lab/seen 2>/dev/null || true
        sleep 1
    done
) &
watcher=$!
sleep 3
echo "lab: backup begins"
code=0
/agent backup --server http://10.77.0.1:80 --disk /dev/office/data --json >/lab/done 2>/lab/log || code=$?
echo "$code" >/lab/code
tail -n 1 /data/busy/log >/lab/written
lvs --noheadings -o lv_name office >/lab/after
dmsetup ls >/lab/dm

# Stopped in the middle, it takes its snapshot away, too.
/agent backup --server http://10.77.0.1:80 --disk /dev/office/data >/lab/stopped-log 2>&1 &
agent=$!
for _ in $(seq 1 100); do
    ! lvs --noheadings -o lv_name office | grep -q netboot || break
    sleep 0.2
done
lvs --noheadings -o lv_name office >/lab/in-the-middle
kill -TERM "$agent"
wait "$agent" || true
lvs --noheadings -o lv_name office >/lab/after-stop
kill "$writer" "$watcher"

# LVM in LUKS, as installers make it: nothing uses it, and the agent opens it with its key.
printf 'a key for the lab' >/lab/key
cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /lab/key /dev/vdc1
cryptsetup open --key-file /lab/key /dev/vdc1 inner
pvcreate -q /dev/mapper/inner
vgcreate -q hidden /dev/mapper/inner
lvcreate -q --yes -L 100M -n root hidden
lvcreate -q --yes -L 20M -n swap hidden
mke2fs -q -t ext4 /dev/hidden/root
mkswap -q /dev/hidden/swap
mkdir /inner
mount /dev/hidden/root /inner
cp -a /data/before /inner/before
rm /inner/before/large
(cd /inner/before && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum) >/lab/inner
umount /inner
vgchange -q -an hidden
cryptsetup close inner
code=0
/agent backup --server http://10.77.0.1:80 --disk /dev/vdc --unlock /dev/vdc:1=/lab/key --json \
    >/lab/inner-done 2>/lab/inner-log || code=$?
echo "$code" >/lab/inner-code
sleep 2
udevadm settle
dmsetup ls >/lab/inner-dm
losetup --all >/lab/inner-loop
sync
trap - EXIT
echo "lab: done"
systemctl --no-block poweroff
