// Package peerports closes ports of a node to all but the cluster: the kubelet's to all that are no node, no pod and in
// no range that the settings name, and vxlan's, whose packets nothing authenticates, to all that are no node.
//
// The nftables table umiak-peers has one chain at the hook input. What the machine sends to itself passes, as the
// tunnel's connections to the kubelet do, and established connections are not looked at. Nothing is closed until
// agent/dataplane/network knows the cluster's nodes, and the table stays while no server answers. The package describes
// the table; agent/dataplane/network hands it to netfilter/reconcile, which writes and restores it. An accept here
// does not override a drop in another table.
package peerports
