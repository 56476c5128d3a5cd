// Package hostport is the CNI plugin "portmap": it forwards ports of the host to pods (hostPort).
//
// Upstream's plugin calls the program nft or iptables; this one uses netlink, through package netfilter, so that
// neither is needed. It accepts upstream's configuration (capability portMappings, chained behind bridge). Its rules
// are in the nftables table umiak-hostport, each with the container's ID as its comment, which identifies them. It
// writes each pod's ports to a state folder, from which the agent restores the rules (Restore) when another program
// has removed them.
//
// The plugin also announces each pod to agent/dataplane/netpol and waits until the pod's network policies are in
// force (package announce), because a plugin of its own for that would be one more process for every pod. It is a
// program that runs for milliseconds, built into the multi-call program of agent/runtime/programs/cni: it imports
// nothing large.
package hostport
