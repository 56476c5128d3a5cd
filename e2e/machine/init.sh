#!/bin/sh
# Process 1 of a machine: makes the mounts that the machine sees, says which process it is, then reaps.
# DIR is the machine's folder, NAME its host name, DIST the folder of binaries to show at $DIR/bin;
# CGROUPS holds one "MOUNTPOINT TYPE OPTIONS" a line.
set -eu
# /proc is still the host's here, so this is the pid that the host knows.
read -r pid _ </proc/self/stat
mount --make-rprivate /
hostname "$NAME"
if [ -n "$DIST" ]; then mount --bind "$DIST" "$DIR/bin"; fi
# What is only covered would still be listed in mountinfo, where programs look for the cgroup mounts.
umount -R -l /sys
umount -R -l /proc
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
echo "$CGROUPS" | {
  cg1='' cg2=''
  while read -r at type opts; do
    case $at in
    "") continue ;;
    /sys/fs/cgroup) mount -t "$type" -o "$opts" "$type" "$at" && cg2=1 ;;
    *)
      [ -n "$cg1" ] || mount -t tmpfs -o mode=755,nosuid,nodev,noexec tmpfs /sys/fs/cgroup
      cg1=1
      mkdir -p "$at"
      mount -t "$type" -o "$opts" "$type" "$at"
      ;;
    esac
  done
  # cgroup v2 allows no process in a group that has controllers for its children.
  if [ -n "$cg2" ]; then mkdir -p /sys/fs/cgroup/init; echo 1 >/sys/fs/cgroup/init/cgroup.procs; fi
}
umount -R -l /run 2>/dev/null || : # where it is no mount of its own
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
mkdir -p /run/netns /run/lock
for d in lib:/var/lib log:/var/log opt:/opt; do mount --bind "$DIR/${d%%:*}" "${d#*:}"; done
mount -t overlay -o "lowerdir=/etc,upperdir=$DIR/etc,workdir=$DIR/etc.work" overlay /etc
# As on a machine that systemd booted: mounts made below are seen by containers that ask for it.
mount --make-rshared /
echo "booted $pid"
exec >/dev/null
# Sleeps for ever; being in wait is what reaps the orphans that a process 1 inherits.
while :; do
  sleep 2147483647 &
  wait "$!" || :
done
