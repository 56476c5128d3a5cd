// Package registries determines how this node reaches image registries. It reads /etc/umiak/registries.yaml, which has
// the format of k3s's file (mirrors with rewrites and "*", credentials, TLS).
//
// The file is parsed strictly and followed while the node runs; a change applies to the next pull. If a changed file
// does not parse, the error is reported and the previous settings stay in use. If the file does not parse when the node
// starts, pulls fail with that error, and nothing else does. The package writes nothing: containerd, in the same
// process, calls it at each pull (agent/runtime/containerd.Registry).
//
// The package imports containerd's registry client and internal/. The agent's list of parts runs it; agent/check and
// the commands use Read.
package registries
