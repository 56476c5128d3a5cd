// Package podview gives the agents of nodes what they need of the cluster's Pods, and nothing else: labels, addresses and ports,
// from which NetworkPolicies and DNS are made. Environment, arguments, annotations and volumes of Pods are not for other nodes.
//
// It is a filter in the API server's chain of handlers, behind authorization; it imports apimachinery and apiserver alone.
package podview
