// Package kubeclient makes clients of an API server from a kubeconfig that umiak wrote.
//
// A part makes its clients when it runs, not when it is constructed: the authorities in the kubeconfig's files may be
// replaced between the two. The package imports client-go and nothing of umiak; server and agent may call it.
package kubeclient
