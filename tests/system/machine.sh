#!/bin/bash
# The first process of a machine: makes the file system around it, and becomes its systemd.
#
#   unshare --mount --pid --fork --uts --ipc --net --cgroup machine.sh TREE BOUND…
#
# TREE is what a root file system is in, or /. What happens to it stays in memory. Each BOUND is an
# absolute path that exists outside, and is there at the same place inside.
set -euo pipefail
tree=$1
shift

mount --make-rprivate /
mount -t tmpfs -o mode=755 machine /mnt
mkdir /mnt/changes /mnt/work /mnt/root
root=/mnt/root
mount -t overlay -o "lowerdir=$tree,upperdir=/mnt/changes,workdir=/mnt/work" machine "$root"

mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"

mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
touch "$root/dev/console"

for path in "$@"; do
    if [[ -d $path ]]; then
        mkdir -p "$root$path"
    else
        mkdir -p "$(dirname "$root$path")"
        touch "$root$path"
    fi
    mount --bind "$path" "$root$path"
done

# What boots is what belongs to every system, and nothing of what this tree happens to start.
cat >"$root/etc/systemd/system/machine.target" <<'UNIT'
[Unit]
Description=A machine for tests
Requires=basic.target dbus.socket
After=basic.target dbus.socket
AllowIsolate=yes
UNIT
: >"$root/etc/machine-id"

mkdir "$root/run/before"
cd "$root"
pivot_root . run/before
umount --lazy /run/before
rmdir /run/before
# systemd passes credentials to services by mounts that have to propagate.
mount --make-rshared /
exec env -i container=machine PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system \
    --unit=machine.target --log-target=journal --show-status=no </dev/null
