// Package host detects the properties of the machine (cgroups, capabilities, kernel modules, ports), prepares it for
// containers, and records its earlier state, so that cleanup can restore it.
//
// Every change outside umiak's own directories goes through the Journal, which writes the previous value to disk before
// the change. The agent, cleanup and check call this package. It imports no Kubernetes or containerd code.
package host
