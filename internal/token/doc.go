// Package token is what a machine needs in order to join a cluster: the line that a user copies, and the
// check that the machine at the other end is a server of that cluster, before anything is said to it.
//
//	um1.<hex sha256 of the server CA's SubjectPublicKeyInfo>.<id>.<secret>
//
// Servers, agents and the command line use it. It imports nothing of umiak but
// wallclock and atomicfile.
package token
