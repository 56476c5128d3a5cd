// Package reconcile decides when the tables of the data plane are written and repaired.
//
// A Loop collects changes for a moment, writes them, and compares the whole table after an error or a change by
// another program. Its pauses grow under constant changes, so that they do not keep a small machine busy. The service
// proxy and the network policies have one Loop each. Tables has one for all small tables: those that their owner
// writes as a whole (network, dns, peerports), and those that the CNI plugin writes as well (hostport, podsource).
//
// Package netfilter writes; the agent's assembly makes the Tables and runs it as a part.
package reconcile
