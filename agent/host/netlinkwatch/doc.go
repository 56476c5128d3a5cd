// Package netlinkwatch follows the kernel's netlink messages about routes, addresses and links, and recovers when the
// kernel drops messages because there are too many.
//
// agent/host/nodeip and agent/dataplane/serviceroute use it. It imports nothing of umiak.
package netlinkwatch
