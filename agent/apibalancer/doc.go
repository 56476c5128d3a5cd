// Package apibalancer is the node's API server endpoint: a TCP proxy on 127.0.0.1 that forwards connections to a server
// that answers. All clients of the node use it.
//
// It stores the list of servers on disk, follows the cluster's list, and learns from its connections and from a check
// every few seconds which servers answer. If a server does not accept a connection, the next one gets it, unnoticed by
// the client. Connections to a server that has failed are closed, so that clients reconnect.
//
// The agent's list of parts and agent/join use it. It imports agent/host and internal/.
package apibalancer
