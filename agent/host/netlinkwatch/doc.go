// Package netlinkwatch follows the kernel's messages about routes and addresses, also past the moments at which the kernel
// drops some because there are too many.
//
// agent/host/nodeip and agent/dataplane/serviceroute use it. It imports nothing of umiak.
package netlinkwatch
