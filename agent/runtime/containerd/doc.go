// Package containerd runs containerd inside umiak's process.
//
// It owns containerd's configuration, the list of its plugins that are linked in, the pause image, and
// the two places where upstream's plugins are wrapped: images are pulled through the node's registry
// settings, and the pause image is there before the first pod is. Everything lies under the node's own
// directories, so several nodes on one host share nothing. Containers are children of their shims, not
// of this process: they run on when it ends, however it ends.
//
// One process can run one containerd, since upstream keeps its plugins and metrics in globals.
//
// The package imports agent/runtime/programs and internal/layout; the agent's assembly and the commands call it.
package containerd
