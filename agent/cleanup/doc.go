// Package cleanup takes away what a stopped node left on its machine: containers, mounts, network
// namespaces, interfaces, nftables tables, cgroups, changed sysctls and the run directory.
//
// It only touches what is this node's: processes are told by the directory they were started in, network
// namespaces by those processes, tables by their prefix, all else by the node's directories and by the
// journal (agent/host) that was written before each change. So several nodes can share a machine, and
// another container engine beside them is left alone. It may be run again at any time.
//
// `umiak cleanup` and uninstall call it.
package cleanup
