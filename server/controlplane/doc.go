// Package controlplane runs kube-apiserver, kube-controller-manager and kube-scheduler as libraries in
// one process, a file each.
//
// New turns Settings into the components' own options by way of their flags, so that the flags in kube-apiserver-arg
// and the like have the meaning of upstream's documentation and override those that Umiak sets. Feature gates belong to
// the process, not to a component: New sets them once, for all.
//
// Upstream's options, configurations and run functions are used, its commands are not: they own signals, logging and
// the exit of the process. The package may import the libraries of Kubernetes; server/ calls it.
package controlplane
