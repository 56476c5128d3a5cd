// Package netpol enforces NetworkPolicy for the pods of a node, in nftables, through netlink.
//
// While a cluster has no policy there is one watch and nothing else: no table, no watch of pods. With the
// first policy, pods and namespaces are watched and table umiak-policy is made; with the last one it
// goes. Package rules decides what the table holds; package netfilter brings it to the kernel. A new pod
// is announced by its CNI plugin (package announce), so that its address has its policies before its
// first packet.
//
// The agent calls it. Of umiak it imports only agent/dataplane/netfilter, what is below it, and internal/atomicfile.
package netpol
