// Package rules says, as plain data, what the nftables tables of NetworkPolicy hold.
//
// A Builder is told of pods, namespaces and policies and keeps the wanted chains, sets and elements of both
// address families; Flush returns what changed since the last Flush. Building from scratch and building by
// any order of changes give the same table. Verdict runs a packet through what is wanted, as the kernel
// would.
//
// Of Kubernetes it knows label selectors and nothing else, and it touches nothing outside of itself.
// Package netpol brings the result into the kernel.
package rules
