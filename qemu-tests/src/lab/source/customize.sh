#!/bin/sh
# Turns the unpacked Debian into the source machine of the lab, and makes its root file system.
# Runs as (namespace) root outside the tree: customize.sh TREE WORK_DIRECTORY; settings come from WORK/settings.
set -eu
tree=$1
work=$2
. "$work/settings"

echo source-debian > "$tree/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 source-debian\n' > "$tree/etc/hosts"
cat > "$tree/etc/fstab" <<EOF
UUID=$ROOT_UUID / ext4 errors=remount-ro 0 1
UUID=$ESP_UUID /boot/efi vfat umask=0077 0 1
EOF
mkdir -p "$tree/boot/efi"
# Host keys without sshd, which would only take time: copies of the machine must have their own.
mkdir -p "$tree/etc/ssh"
ssh-keygen -q -A -f "$tree"
echo 'root:lab' | chroot "$tree" chpasswd

# no_timer_check: on a busy computer the emulated timer may stand still while Linux looks at it.
cat >> "$tree/etc/default/grub" <<EOF
GRUB_TIMEOUT=1
GRUB_TERMINAL=serial
GRUB_SERIAL_COMMAND="serial --speed=115200"
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200 no_timer_check"
GRUB_DISABLE_OS_PROBER=true
EOF

cp "$work/units/"*.service "$tree/etc/systemd/system/"
install -m 755 "$work/units/lab-provision" "$tree/usr/local/sbin/lab-provision"
chroot "$tree" systemctl -q enable lab-provision.service lab-marks.service
# The machine has no clock to set and nothing to fetch: these only cost time under emulation.
chroot "$tree" systemctl -q mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service \
    systemd-networkd-wait-online.service

# What mmdebstrap takes away only after this script.
rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/* "$tree"/var/log/*.log "$tree"/var/log/apt

# Files that a careless restore would damage.
evidence=$tree/srv/evidence
mkdir -p "$evidence"
cp -R "$work/data" "$evidence/data"
mkdir "$evidence/empty directory" "$evidence/sticky" "$evidence/many"
printf 'owned by nobody here\n' > "$evidence/odd-owner"
printf '#!/bin/sh\n' > "$evidence/set-uid"
printf 'secret\n' > "$evidence/no-access"
printf 'ahoj\n' > "$evidence/příliš žluťoučký kůň 日本語"
printf 'x' > "$evidence/$(printf '%0250d' 0)"
printf 'line\n' > "$evidence/new
line"
: > "$evidence/empty"
ln "$evidence/odd-owner" "$evidence/hard-link"
ln -s odd-owner "$evidence/symlink"
ln -s "/$(printf '%0200d' 0)" "$evidence/long dangling symlink"
mkfifo "$evidence/fifo"
truncate -s 64M "$evidence/sparse"
printf 'middle' | dd of="$evidence/sparse" bs=1 seek=33554439 conv=notrunc status=none
printf 'end' | dd of="$evidence/sparse" bs=1 seek=67108861 conv=notrunc status=none
i=0
while [ $i -lt 2000 ]; do
    : > "$evidence/many/file with a long name so that the directory has an index $i"
    i=$((i + 1))
done
chown -h 12345:54321 "$evidence/odd-owner" "$evidence/symlink"
chown 65533:65533 "$evidence/sticky"
chmod 4755 "$evidence/set-uid"
chmod 0000 "$evidence/no-access"
chmod 3777 "$evidence/sticky"
touch -d '1999-12-31 23:59:59.123456789 UTC' "$evidence/empty"
touch -d '2037-01-01 00:00:00.000000001 UTC' "$evidence/set-uid"
touch -h -d '2001-02-03 04:05:06 UTC' "$evidence/symlink"
touch -d '2010-10-10 10:10:10 UTC' "$evidence/empty directory"

cp "$tree"/boot/vmlinuz-* "$work/vmlinuz"
cp "$tree"/boot/initrd.img-* "$work/initrd"
chmod 644 "$work/vmlinuz" "$work/initrd"
# Seen through a bind mount, the tree is without the /proc and /sys that are mounted in it.
plain=$work/plain
mkdir "$plain"
mount --bind "$tree" "$plain"
trap 'umount "$plain"' EXIT
mke2fs -q -t ext4 -J size=16 -L source-root -U "$ROOT_UUID" -d "$plain" "$work/root.ext4" "$ROOT_KIB"
chmod 644 "$work/root.ext4"
