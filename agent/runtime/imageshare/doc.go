// Package imageshare lets the nodes of a cluster give each other images, so that only one of them must fetch an
// image, or be given it where there is no registry.
//
// It has two ends. One serves what is in this node's containerd, read only, by the registry protocol, to other
// nodes alone (serve.go). The other stands before the first registry that a pull would ask (pull.go): containerd
// runs in this process and asks for hosts through agent/runtime/containerd.Registry, so nothing listens for it and
// nothing is configured. What a neighbour asks for is never asked of others, so there are no loops.
//
// Who may say what:
//   - Content is named by its digest, which is checked, so every node may give it.
//   - What a name stands for, and whether this node may have it, is the registry's to say while it answers.
//     Only when none does, servers say what a tag is; they rule the cluster anyway. An agent never does, but for
//     itself: what was imported on a node is what its pods get where nobody else answers.
//
// It follows the nodes by what agent/dataplane/network watches (its Observer) and reads containerd through its socket. It
// imports internal/wellknown, internal/status, agent/host and, for the connection, agent/runtime/images, and nothing else of umiak; the agent's list of parts calls it.
package imageshare
