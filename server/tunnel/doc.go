// Package tunnel is the server's end of the reverse tunnel, through which the API server reaches kubelets and pods of
// nodes that accept no connections.
//
// Tunnels serves tunnelwire.Path: it identifies the node by its client certificate, keeps the node's connection, and
// opens streams through it. Nodes maps addresses to nodes, using the API server's informer. Dialer combines the two;
// the API server makes all its connections to nodes and pods with Dialer.DialContext.
//
// It imports internal/. The server assembles it.
package tunnel
