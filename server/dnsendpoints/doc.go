// Package dnsendpoints gives the Service kube-dns endpoints where another proxy than the nodes' own serves Services
// (disable-kube-proxy).
//
// Every node answers its own pods (agent/dataplane/dns), so the Service needs no endpoints where nftables takes the
// queries on their way. A proxy that decides earlier, in eBPF at the pod's socket or interface, needs one: the address
// of the pod's own node, at wellknown.DNSEndpointPort. The Service has internalTrafficPolicy Local
// (manifests/dns.yaml), so a query never leaves its node, and an address that a node claims falsely concerns that node
// alone.
//
// plan.go is a pure function of Nodes; the Controller watches Nodes and its own EndpointSlices. server's assembly calls
// it, on one server at a time. It imports client-go and nothing of Kubernetes' server side.
package dnsendpoints
