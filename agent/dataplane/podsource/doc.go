// Package podsource drops packets that pods send with addresses that are not theirs.
//
// A raw socket, which containers may have by default, sends whatever source its program writes; network policies and
// masquerading decide by the source. Each pod's interface on the host has a chain of its
// own at its ingress (nftables family netdev, table umiak-source), before any bridge or policy sees the packet: it
// drops frames that are not IPv4, ARP or IPv6 or have a VLAN tag, frames with another hardware address, IPv4, ARP and
// IPv6 with another source, neighbour discovery for others, in fragments or as a router, and IPv6 whose headers
// cannot be followed. IPv6 link-local and unspecified sources pass, which neighbour discovery needs. There is no set
// and no lookup: a packet is compared with the constants of its own interface.
//
// The CNI plugin (agent/dataplane/network/hostport) calls Check before a pod starts. agent/dataplane/network calls
// Restore at each start, also for pods of an older release; netfilter/reconcile calls it when another program
// has removed something. An unknown interface has no chain and is not checked: nothing is dropped by mistake. Pods of
// another CNI plugin are not concerned.
package podsource
