// Package tunnel is a node's end of the reverse tunnel: it keeps a connection to every server, over which
// that server reaches the node's kubelet and pods.
//
// Run follows a list of servers. Each tunnel is a lifecycle of its own: connect with the node's certificate,
// answer what the server asks for, notice within seconds when the connection is dead, begin again. What a
// server may reach is in Allow and nowhere else.
//
// It imports internal/tunnelwire and internal/status and nothing else of umiak; the agent's list of parts
// calls it.
package tunnel
