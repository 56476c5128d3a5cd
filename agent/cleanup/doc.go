// Package cleanup removes what a stopped node left on its machine: containers, mounts, network namespaces, interfaces,
// nftables tables, cgroups, changed sysctls and the run directory.
//
// It touches only what belongs to this node. It identifies processes by the directory in which they were started,
// network namespaces by those processes, tables by their prefix, and everything else by the node's directories and by
// the journal (agent/host), which was written before each change. So several nodes, or another container engine, can
// share the machine. It may be run again at any time.
//
// `umiak cleanup` and `umiak uninstall` call it. It imports agent/host and internal/.
package cleanup
