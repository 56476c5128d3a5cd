// Package proxy makes Services work on a node.
//
// It is the counterpart of kube-proxy: its change trackers follow Services and EndpointSlices and decide
// which endpoints this node uses; package rules turns that into the elements of an nftables table, and
// package nft brings what changed into the kernel through netlink. Health-check node ports and the
// removal of conntrack entries whose UDP endpoint is gone are kube-proxy's own, too.
//
// Only the agent calls it.
package proxy
