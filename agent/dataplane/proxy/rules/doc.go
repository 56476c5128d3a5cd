// Package rules says, as plain data, what the nftables tables of the service proxy hold.
//
// The tables have a fixed, small set of chains; everything that belongs to one Service is elements of
// maps and sets. A change of a Service or of its endpoints is therefore a handful of elements, whatever
// else is there, and the kernel has no chain of verdicts to walk again before it may commit.
//
// A Builder keeps the wanted elements of one address family: Set and Delete say what a Service port
// looks like, Flush returns what changed since the last Flush. Building from scratch and building by any
// order of changes give the same table. Package nft brings the result into the kernel.
//
// The package knows nothing of Kubernetes and touches nothing outside of itself.
package rules
