// Package podview restricts what agents see of Pods to what NetworkPolicies and DNS need: labels, addresses and ports.
// Environment, arguments, annotations and volumes of Pods are not shown to other nodes.
//
// It is a filter in the API server's handler chain, after authorization. The server calls it. It imports apimachinery
// and apiserver, and nothing of umiak.
package podview
