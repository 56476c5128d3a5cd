// Package controlplane runs kube-apiserver, kube-controller-manager and kube-scheduler as libraries in
// one process, a file each.
//
// New turns Settings into the components' own options by way of their own flags, so that whatever a user
// gives in kube-apiserver-arg and the like means what upstream's documentation says, and overrides what
// umiak sets. Feature gates belong to the process, not to a component: New sets them once, for all.
//
// The commands of upstream are not used: they own signals, logging and the exit of the process. Their
// options, configurations and run functions are. It may import the libraries of Kubernetes; server/
// calls it.
package controlplane
