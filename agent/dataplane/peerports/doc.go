// Package peerports closes ports of a node to all but the cluster: the kubelet's to whoever is no node, no pod and in no range
// that the settings name, and vxlan's, whose packets nothing authenticates, to whoever is no node.
//
// The nftables table umiak-peers has one chain at the hook input. What the machine sends to itself passes, as the tunnel's
// connections to the kubelet do, and established connections are not looked at. The table is written whole, in one transaction;
// nothing is closed until agent/dataplane/network knows the cluster's nodes, and what was written stays while no server answers.
// agent/dataplane/tables puts it back when somebody has removed it. An accept here overrules nobody's drop.
package peerports
