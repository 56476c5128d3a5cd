// Package folders shows folders of a node's data where the world's manifests look for them: the kubelet's root at
// /var/lib/kubelet and the logs of pods at /var/log/pods.
//
// CSI drivers, device plugins and log collectors mount these paths into their pods, where a symbolic link would lead
// nowhere, so they are bind mounts of folders below the data directory. Nothing else of the machine's mounts is
// changed: `/` need not be shared, and is not made so. A folder there that another kubelet uses is not covered.
//
// The agent calls Show before containerd starts, cleanup calls Hide, and `umiak check` calls Check. The package imports
// nothing of umiak but agent/host and internal/layout.
package folders
