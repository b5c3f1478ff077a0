#!/bin/sh
# Makes a kind of root in a partition of a disk image, and puts the tree of the source machine into it.
# Runs as root: put-root.sh KIND DISK FIRST_BYTE LENGTH TREE.ext4 ESP_UUID
set -eu
kind=$1 disk=$2 first=$3 length=$4 tree=$5 esp=$6
work=$(mktemp -d)
mkdir "$work/from" "$work/to"
device=$(losetup --find --show --offset "$first" --sizelimit "$length" "$disk")
clean_up() {
    mountpoint -q "$work/to" && umount "$work/to"
    mountpoint -q "$work/from" && umount "$work/from"
    losetup --detach "$device"
    rm -r "$work"
}
trap clean_up EXIT
# Not one given to mkfs: mkfs.btrfs refuses one that any disk of this computer has, and so does mount.
uuid() { blkid --probe --output value --match-tag UUID "$device"; }

case $kind in
xfs)
    mkfs.xfs -q -f -L source-root "$device"
    mount "$device" "$work/to"
    fstab="UUID=$(uuid) / xfs defaults 0 0"
    ;;
btrfs)
    # The root in a subvolume, as Debian's installer has it.
    mkfs.btrfs -q -f -L source-root "$device"
    mount "$device" "$work/to"
    btrfs -q subvolume create "$work/to/@rootfs"
    umount "$work/to"
    mount -o subvol=@rootfs "$device" "$work/to"
    fstab="UUID=$(uuid) / btrfs defaults,subvol=@rootfs 0 0"
    ;;
lvm)
    # Without a device mapper: the volumes are described, not made ready for use. Where they lie is told then.
    lvm() {
        LVM_SYSTEM_DIR=$work command lvm "$@" --driverloaded n --config \
            "devices { filter = [\"a|^$device\$|\", \"r|.*|\"] use_devicesfile = 0 obtain_device_list_from_udev = 0
                external_device_info_source = \"none\" }
            activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
            global { locking_dir = \"$work\" event_activation = 0 } backup { backup = 0 archive = 0 }"
    }
    lvm pvcreate -q -q -y "$device"
    lvm vgcreate -q -q source-vg "$device"
    lvm lvcreate -q -q -an -Zn -Wn -n root -L 2400M source-vg
    lvm lvcreate -q -q -an -Zn -Wn -n swap_1 -L 64M source-vg
    start=$(lvm pvs --noheadings --nosuffix --units b -o pe_start "$device" | tr -d ' ')
    losetup --detach "$device"
    device=$(losetup --find --show --offset $((first + start)) --sizelimit $((2400 << 20)) "$disk")
    mkfs.ext4 -q -J size=16 -L source-root "$device"
    mount "$device" "$work/to"
    fstab="/dev/mapper/source--vg-root / ext4 errors=remount-ro 0 1
/dev/mapper/source--vg-swap_1 none swap sw 0 0"
    # mkswap at its place: behind the root.
    swap=$(losetup --find --show --offset $((first + start + (2400 << 20))) --sizelimit $((64 << 20)) "$disk")
    mkswap -q "$swap" 2>/dev/null || mkswap "$swap" >/dev/null
    losetup --detach "$swap"
    ;;
esac
mount -o loop,ro "$tree" "$work/from"
cp -ax "$work/from/." "$work/to/"
printf '%s\nUUID=%s /boot/efi vfat umask=0077 0 1\n' "$fstab" "$esp" >"$work/to/etc/fstab"
sync -f "$work/to"
