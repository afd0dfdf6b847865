#!/bin/bash
# PID 1 of a rig host: builds its file system in fresh namespaces, then only reaps orphans.
# host_init.sh FOLDER HOSTNAME; READ_ONLY: folders of this machine to show, one a line;
# WITHOUT: programs that this host does not have, one a line.
set -eu
folder=$1 root=$1/root
hostname "$2"

mount --bind "$root" "$root"
for tree in usr etc; do
    mount -t overlay overlay "$root/$tree" \
        -o "lowerdir=/$tree,upperdir=$folder/$tree,workdir=$folder/work-$tree"
done
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
if [ -d /sys/kernel/security ]; then
    mount --rbind /sys/kernel/security "$root/sys/kernel/security"
fi
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mkdir -p "$root/run/sshd" "$root/run/lock"

# A /dev of its own, so that a test may put a card's device files there.
mount -t tmpfs -o mode=755 dev "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/net"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 fuse:10:229 net/tun:10:200; do
    IFS=: read -r name major minor <<<"$node"
    mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for stream in stdin:0 stdout:1 stderr:2; do ln -s "/proc/self/fd/${stream#*:}" "$root/dev/${stream%:*}"; done

# After /tmp, since the worktree may be there.
while read -r shown; do
    [ -n "$shown" ] || continue
    mkdir -p "$root$shown"
    mount --bind "$shown" "$root$shown"
    mount -o remount,bind,ro "$root$shown"
done <<<"$READ_ONLY"

# The kernel says 10 Gbit/s for every virtual interface; a host's profile may say otherwise.
for speed in "$folder"/speed/*; do
    [ -f "$speed" ] || continue
    mount --bind "$speed" "$root/sys/class/net/$(basename "$speed")/speed"
done
while read -r program; do
    [ -z "$program" ] || rm -f "$root/usr/bin/$program" "$root/usr/sbin/$program"
done <<<"$WITHOUT"

mkdir -p "$root/.old"
cd "$root"
pivot_root . .old
umount -l /.old
rmdir /.old
exec </dev/null >/dev/null 2>&1
touch /run/ready
trap : TERM INT
while :; do
    sleep infinity &
    wait $! || true
done
