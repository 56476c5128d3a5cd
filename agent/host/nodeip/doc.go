// Package nodeip decides with which addresses a node runs, and notices when they come or change.
//
// A node keeps its addresses for as long as the machine has them, and also while the machine has none: they are written
// down, so that a boot without a cable starts the pods of before. Choose makes the choice; Tracker makes it again whenever
// the kernel reports a change. What an address was needed for only once a process (the kubelet, flannel) gets another one
// when the process executes itself anew, for which Tracker.Run fails with Moved.
//
// Server and agent share one Tracker in a process. It imports nothing else of umiak but internal/.
package nodeip
