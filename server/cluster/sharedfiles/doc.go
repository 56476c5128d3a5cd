// Package sharedfiles holds which files all servers of a cluster have in common, and moves them from one server to
// another: the keys of the authorities and of encryption at rest, and the tokens of the first start. Whoever
// has them is the cluster.
//
// server calls it. It may import server/pki and internal/.
package sharedfiles
