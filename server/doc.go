// Package server is the control plane: datastore, kube-apiserver, kube-controller-manager, kube-scheduler and the
// addons, in one process.
//
// New makes the values; Parts lists what runs, in start order. Package withnode adds the node of the same machine. The
// package may import datastore/ and, for that node, agent's Joiner contract; nothing below agent/ imports it.
package server
