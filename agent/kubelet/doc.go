// Package kubelet runs the upstream kubelet as a part of the process.
//
// It uses the kubelet's option types, UnsecuredDependencies and Run, never its cobra command: that one
// would take the process's signals, logging and flags. Feature gates are the process's, shared with the
// control plane; the kubelet's gates are only added to them.
//
// What upstream keeps for itself: goroutines that outlive the context (the node lease goes on being
// renewed until the process ends), so a kubelet is started once a process; and os.Exit where the machine
// cannot run pods at all (cAdvisor or the container manager does not start, the port is taken). Run checks
// beforehand what can be checked, so that there is an error to read instead.
//
// The package imports nothing of umiak but agent/host and internal/.
package kubelet
