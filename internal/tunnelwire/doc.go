// Package tunnelwire defines the protocol of the reverse tunnel, for both ends.
//
// An agent opens a TLS connection to a server and sends an HTTP/1.1 request for Path to upgrade to Protocol. From
// then on the connection carries HTTP/2 with reversed roles: the server sends CONNECT requests, one for each
// connection to the node, and the agent answers them. HTTP/2 has what a tunnel needs: a window per stream, so that a
// slow reader delays no other stream, pings, and an answer that tells whether the node was reached.
//
// The package imports nothing of umiak; server/tunnel and agent/tunnel call it.
package tunnelwire
