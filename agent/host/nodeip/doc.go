// Package nodeip chooses the addresses of a node, and detects when they change.
//
// A node keeps its addresses as long as the machine has them, and also while the machine has none: they are stored on
// disk, so that pods start after a boot without a network cable. Tracker makes the choice again whenever the kernel
// reports a change. Some components read the address only once per process (the kubelet, flannel); when it changes,
// Tracker.Run fails with Moved, and the process executes itself again.
//
// Server and agent share one Tracker per process. The package imports agent/host/netlinkwatch and internal/.
package nodeip
