#!/bin/sh
# Boots Debian below the namespaces that this runs in. DIR is the machine's folder, NAME its host name, DIST
# the folder of binaries to show at $DIR/bin, @ROOTFS@ the root file system that all machines share.
set -eu
# /proc is still the host's here, so this is the pid that the host knows.
read -r pid _ </proc/self/stat
mount --make-rprivate /
umount -R -l /proc
mount -t proc -o nosuid,nodev,noexec proc /proc
# nspawn keeps notes here that nobody is to find.
umount -R -l /run 2>/dev/null || : # where it is no mount of its own
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
root=$DIR/root
mkdir -p "$root" "$DIR/upper" "$DIR/work" "$DIR/lib/umiak"
mount -t overlay -o "lowerdir=@ROOTFS@,upperdir=$DIR/upper,workdir=$DIR/work" overlay "$root"
mount -t overlay -o "lowerdir=@ROOTFS@/etc,upperdir=$DIR/etc,workdir=$DIR/etc.work" overlay "$root/etc"
if [ -n "$DIST" ]; then mount --bind "$DIST" "$DIR/bin"; fi
mkdir -p "$root$DIR"
for d in bin home tmp; do
  mkdir -p "$root$DIR/$d"
  mount --bind "$DIR/$d" "$root$DIR/$d"
done
mkdir -p "$root/var/lib/umiak"
mount --bind "$DIR/lib/umiak" "$root/var/lib/umiak"
echo "booted $pid"
exec </dev/null >>"$DIR/console.log" 2>&1
# Services that need the network find it there, as they do where a network manager says when it is up.
until ip -4 route show default | grep -q eth0; do sleep 0.02; done
# On a host with cgroup v1 the machine gets v1 alone, without the empty v2 that hybrid hosts have beside it:
# that is what old distributions boot with, and there systemctl kill can be tested.
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then unified=1; else unified=0; fi
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=$unified SYSTEMD_NSPAWN_API_VFS_WRITABLE=1
exec systemd-nspawn --quiet --directory="$root" --boot --hostname="$NAME" --network-namespace-path=/proc/self/ns/net \
  --register=no --keep-unit --capability=all --system-call-filter="add_key keyctl bpf" --bind=/dev/kmsg \
  --console=pipe --link-journal=no --resolv-conf=off --timezone=off
