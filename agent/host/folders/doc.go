// Package folders bind-mounts folders of a node's data at the fixed paths that manifests of CSI drivers, device plugins
// and log collectors use: the kubelet's root at /var/lib/kubelet and the pods' logs at /var/log/pods.
//
// Such manifests mount these paths into pods, where a symbolic link would dangle; so they are bind mounts of folders
// below the data directory. Other mounts of the machine do not change: `/` need not be shared, and does not become so.
// A folder that another kubelet uses is not covered.
//
// The agent calls Show before containerd starts, cleanup calls Hide, and `umiak check` calls Check. The package imports
// agent/host and internal/layout.
package folders
