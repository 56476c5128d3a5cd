// Package tunnel is the node's end of the reverse tunnel: a connection to every server, over which that server reaches
// the node's kubelet and pods.
//
// Run follows a list of servers. Each tunnel has its own loop: connect with the node's certificate, serve the server's
// requests, detect a dead connection within seconds, connect again. Allow decides what a server may reach, and nothing
// else does.
//
// It imports internal/. The agent's list of parts runs it.
package tunnel
