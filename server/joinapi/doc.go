// Package joinapi takes machines into the cluster: the HTTP API by which nodes join and renew their
// certificates, tokens, and node passwords.
//
// Tokens and node passwords are Secrets in kube-system with the label umiak.io/join; of what is secret in
// them only hashes are kept. The API follows them by a watch, so that it refuses without asking anybody:
// a bad token costs a look into a map and a hash, before the request's body is read.
//
// The Secret of a node's password is also the record of its addresses and of the keys of its certificates. Members
// knows from it whose certificates count and whose an address is; the API server, the tunnel and the load balancer
// ask it. A deleted Node has no such Secret any more.
//
// server/ puts API before the API server's authentication; the command line uses Tokens. It may import
// server/pki, internal/ and client-go.
package joinapi
