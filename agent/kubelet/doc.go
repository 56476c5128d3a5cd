// Package kubelet runs the upstream kubelet in this process.
//
// It uses the kubelet's option types, UnsecuredDependencies and Run, not its cobra command, which would take over the
// process's signals, logging and flags. Feature gates belong to the process and are shared with the control plane; the
// kubelet's gates are added to them.
//
// Two properties of upstream remain. Some goroutines outlive the context (the node lease is renewed until the process
// ends), so a process can start a kubelet only once. And upstream calls os.Exit where the machine cannot run pods
// (cAdvisor or the container manager does not start, the port is in use); Run checks for such conditions before, and
// returns an error.
//
// The package imports agent/host, agent/kubelet/pullrecords and internal/. The agent's list of parts runs it; the
// commands use Check and the parsers.
package kubelet
