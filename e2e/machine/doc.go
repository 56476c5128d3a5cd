// Package machine makes isolated Linux machines on one host, for tests and benchmarks.
//
// A machine has network, mount, pid, uts, ipc and cgroup namespaces of its own, a cgroup of its own in
// every hierarchy that it sees as the root, and private /run, /etc, /opt, /var/lib and /var/log whose
// contents lie in one folder on the real disk (overlayfs must be able to use them). Programs that run in
// it find an ordinary machine at the ordinary paths, so two of them on one host share nothing.
// Machines on one LAN reach each other over a bridge that stands in a network namespace of its own;
// nothing is ever put into the root namespace.
//
// Everything that a machine consists of dies with the process that made it, also when that is killed,
// unless it was made to persist; Sweep removes folders and cgroups that a killed process left behind.
//
// The package needs root, mount(8) and unshare(1), and imports nothing of umiak. Tests and benchmarks
// call it.
package machine
