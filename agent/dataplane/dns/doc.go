// Package dns answers names for the pods and the host of one node, in the agent's process.
//
// It owns three things on the node: an address on the loopback interface (AddrV4, AddrV6) where CoreDNS
// listens, the nftables table umiak-dns which leads the cluster DNS address there, and a route that lets
// the host itself use that address without a default route. It runs CoreDNS with the Corefile of the
// ConfigMap kube-system/coredns, rewritten for its place (see package corefile), and loads it again when
// it, coredns-custom or the host's resolv.conf changes. What it knows of Services, EndpointSlices and
// namespaces comes from the agent's shared informers: there is no second copy and no second connection.
//
// CoreDNS is a program that became a library: its plugin registry, the order of plugins and the log are
// process-wide. This package is the only one that sets them, once, and no other may import CoreDNS. Directives that
// would open a port, poll or end the process (health, ready, prometheus, reload, loop) are removed or replaced.
//
// The agent's assembly calls New and Run; `umiak cleanup` calls Cleanup. It imports nothing else of umiak
// but internal/.
package dns
