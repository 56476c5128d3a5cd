// Package apiservers finds the addresses of all API servers of a cluster, which they publish as endpoints of the
// Service default/kubernetes.
//
// The agent's load balancer, the join API and the servers use it. It imports client-go and nothing of umiak.
package apiservers
