#!/bin/bash
# PID 1 of namespaces within a rig host: systemd with a /run and a cgroup tree of its own.
set -eu
mount -t proc proc /proc
while mountpoint -q /sys/fs/cgroup; do umount -l /sys/fs/cgroup; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs run /run
mkdir -p /run/lock /run/sshd
exec env container=docker /lib/systemd/systemd --system --unit=basic.target
