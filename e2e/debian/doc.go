// Package debian makes freshly installed Debian machines with systemd for package machine to boot: what
// install.sh, the unit, shutdown, reboot and power loss are tested on.
//
// Each machine is an overlay over one root file system, which debootstrap makes once a host. systemd-nspawn
// boots it below the namespaces that package machine makes, so everything dies with them. /etc, and
// /var/lib/umiak, lie in the machine's own folder on the disk, as for every machine; the rest of what a
// machine writes is kept there as well, and survives PowerOff.
//
// The package needs root and the packages debootstrap and systemd-container. It imports nothing of umiak.
// Tests call it.
package debian
