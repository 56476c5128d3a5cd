// Package containerd runs containerd inside umiak's process.
//
// It owns containerd's configuration, the list of containerd plugins that are linked in, the pause image, and the two
// wrappers around upstream plugins: one resolves image pulls through the node's registry settings (transfer.go), the
// other creates the pause image before the CRI service starts (pause.go). All files are below the node's own
// directories, so several nodes on one host share nothing. Containers are children of their shims, not of this process:
// they keep running when the process ends, for whatever reason.
//
// One process can run one containerd, once, because upstream keeps plugins and metrics in globals.
//
// The package imports agent/runtime/programs and internal/. The agent's list of parts runs it;
// agent/runtime/imageshare, agent/kubelet and the commands use its paths and constants.
package containerd
