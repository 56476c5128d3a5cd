// Package tunnelwire is what both ends of the reverse tunnel agree on.
//
// An agent opens a TLS connection to a server and asks with an HTTP/1.1 request for Path to switch to
// Protocol. From then on the connection carries HTTP/2 with the roles turned round: the server sends
// CONNECT requests, one for each connection that it wants to have at the node, and the agent answers them.
// HTTP/2 brings what a tunnel needs: a window for each stream, so that a slow reader holds up only itself,
// pings, and an answer that says whether the node was reached.
//
// The package imports nothing of umiak; server/tunnel and agent/tunnel call it.
package tunnelwire
