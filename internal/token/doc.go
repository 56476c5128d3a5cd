// Package token holds join tokens: the line that a user copies to a machine, and the check that the other end of a
// connection is a server of the token's cluster, before the secret is sent.
//
//	um1.<hex sha256 of the server CA's SubjectPublicKeyInfo>.<id>.<secret>
//
// Servers, agents and the commands use it. Of umiak, it imports wallclock, packetmark and atomicfile.
package token
