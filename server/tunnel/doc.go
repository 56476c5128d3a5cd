// Package tunnel is the server's end of the reverse tunnel, by which the API server reaches kubelets and
// pods of nodes that take no connections.
//
// Tunnels answers at tunnelwire.Path: it finds out by the client certificate which node asks, keeps the
// node's connection, and opens streams through it. Nodes knows which node an address belongs to, from the
// API server's own informer. Dialer puts the two together; the API server makes all its connections to
// nodes and pods with Dialer.DialContext.
//
// It imports internal/tunnelwire, internal/wellknown, internal/logging and internal/status and nothing else of umiak; server/ wires it.
package tunnel
