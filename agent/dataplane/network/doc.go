// Package network connects this node's pods with each other, with those of other nodes and with the world.
//
// It waits for the node's pod ranges (node.spec.podCIDRs), runs flannel's backend for them, keeps the
// masquerade rules in the nftables table `umiak-network`, and writes the CNI configuration that containerd
// gives pods their interface by. Flannel's backends come from its module; the part that tells them of
// nodes (its "subnet manager") is ours, with flannel's own annotations, because flannel's polls every
// second or three, keeps whole Node objects, and ends the process when it is not answered.
//
// No external program is called. The package imports nothing of umiak but agent/host and internal/.
package network
