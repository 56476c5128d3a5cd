// Package hostport is the CNI plugin "portmap": it leads ports of the host to pods (hostPort).
//
// Upstream's plugin calls the program nft or iptables; this one speaks netlink, so that neither need be
// there. It takes upstream's configuration (capability portMappings, chained behind bridge). Its rules are
// in the nftables table `umiak-hostport`, each with the container's id, by which they are found again.
// It also announces each pod to agent/dataplane/netpol and waits until the pod's network policies are in force
// (package announce), because a plugin of its own for that would be one more process for every pod.
// It is a program that runs for milliseconds, built into the bundle's multi-call program by agent/runtime/programs/cni. It writes
// down each pod's ports, by which the agent opens them again (Restore) when somebody has removed the rules.
package hostport
