// Package imageshare distributes images between the nodes of a cluster, so that only one node must pull an image, or
// import it where there is no registry.
//
// It has two ends. The server gives the content of this node's containerd, read-only, over the registry protocol, to
// other nodes of the cluster only (serve.go). The client is a transport in front of the first registry host of a pull
// (pull.go): containerd runs in this process and gets its hosts from agent/runtime/containerd.Registry, so the client
// needs no port and no configuration. A request from another node is never forwarded, so there are no loops.
//
// Trust:
//
//   - Content is addressed by digest and verified, so any node may provide it.
//
//   - What a tag refers to, and whether this node may have an image, is the registry's decision while it answers. If
//     it does not, servers resolve tags: they control the cluster anyway. An agent resolves tags only for itself, to
//     images that were imported on it.
//
// The package gets the list of nodes from agent/dataplane/network (its Observer) and reads containerd through its
// socket. It imports agent/host, agent/runtime/images and internal/. The agent's list of parts runs it.
package imageshare
