// Package worker puts together a node whose servers are other machines: its membership (agent/join), the balancer over
// all servers (agent/apibalancer), and the node itself (agent).
//
// cmd/internal/nodecmd runs a Worker as the process. On a server's own machine there is none: package server is the
// agent.Joiner there.
package worker
