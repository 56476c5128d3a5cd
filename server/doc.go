// Package server is the control plane: datastore, kube-apiserver, kube-controller-manager,
// kube-scheduler and the addons, in one process.
//
// New assembles its parts in start order. It may import datastore/ and, for the one node it lives on,
// agent's Joiner contract; nothing below agent/ imports it.
package server
