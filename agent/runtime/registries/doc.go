// Package registries knows how this node reaches image registries: /etc/umiak/registries.yaml, in the
// form that k3s users know (mirrors with rewrites and "*", credentials, TLS).
//
// The file is parsed strictly and followed while the node runs: a change applies to the next pull. A
// change that does not parse is reported and the settings before it stay; a file that does not parse
// when the node starts makes pulls fail with that message, and nothing else. Nothing is written:
// containerd, in the same process, asks this package at each pull (agent/runtime/containerd.Registry).
//
// The package imports containerd's registry client, and of umiak only internal/status.
package registries
