// Package foreign is the container runtime of a node that is not Umiak's: containerd or CRI-O, which the machine's
// administrator has installed and configured, at the socket of container-runtime-endpoint.
//
// It waits for the runtime and reports its name. Images, registries and programs are the runtime's own; package agent
// leaves Umiak's out. agent runs it, agent/check asks it. It imports nothing of umiak but internal/.
package foreign
