// Package rules describes, as plain data, the content of the nftables tables of NetworkPolicy.
//
// A Builder receives pods, namespaces and policies and holds the desired chains, sets and elements of both address
// families; Flush returns the changes since the last Flush. Building from scratch and building by any order of changes
// give the same table. Verdict evaluates a packet against the desired tables as the kernel does.
//
// The package knows no type of Kubernetes but label selectors, and has no effect outside of itself. Package netpol
// writes the result into the kernel.
package rules
