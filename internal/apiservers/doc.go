// Package apiservers finds the addresses of all API servers of a cluster, as they publish them in the Service
// default/kubernetes.
//
// The agent's balancer, the join API and the servers themselves use it. It imports client-go and nothing of umiak.
package apiservers
