// Package netlinkwatch follows the kernel's messages about routes, addresses and links, also past the moments at which the kernel
// drops some because there are too many.
//
// agent/host/nodeip and agent/dataplane/serviceroute use it. It imports nothing of umiak.
package netlinkwatch
