package containerd

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"path/filepath"

	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/version"
	"github.com/pelletier/go-toml/v2"

	"github.com/umiak-io/umiak/agent/runtime/programs"
	"github.com/umiak-io/umiak/internal/layout"
)

// Namespace is the containerd namespace that the kubelet's containers and images are in.
const Namespace = "k8s.io"

// Config describes the node's containerd. Every field without a stated default must be set.
type Config struct {
	Dirs     layout.Dirs
	Programs programs.Programs
	// Snapshotter is "overlayfs" or "native". If the data directory's file system does not support overlayfs,
	// containerd uses native and logs a warning.
	Snapshotter string
	// SystemdCgroup makes runc create cgroups through systemd. It must match the kubelet's cgroup driver.
	SystemdCgroup bool
	// OwnNetwork means that the user installs the pod network: containerd reads the CNI configuration and plugins from
	// the usual folders, and uses the bundled plugins where the user's folder has none of that name.
	OwnNetwork bool
	// Runtime is the OCI runtime of pods without a RuntimeClass: one of OtherRuntimes, or "" for runc.
	Runtime string
	// SELinux gives containers SELinux labels.
	SELinux bool
	// NonrootDevices gives the devices in a container to the user and group of its security context.
	NonrootDevices bool
	// ShimCgroup is the cgroup of the shims; "" leaves them in umiak's own cgroup.
	ShimCgroup string
	// Registry resolves a registry to hosts; nil uses the host in the image's name.
	Registry Registry
	Log      *slog.Logger
}

// settings holds what probe determined at start.
type settings struct {
	snapshotter string
	restrictOOM bool
	runtime     string // path of the program of Config.Runtime, "" for runc
}

// Folders in which a pod network that is installed by a manifest puts its configuration and its plugins.
const (
	usersCNIConfig  = "/etc/cni/net.d"
	usersCNIPlugins = "/opt/cni/bin"
)

// CNIConfigDir is the folder from which containerd reads the CNI configuration.
func (c Config) CNIConfigDir() string {
	if c.OwnNetwork {
		return usersCNIConfig
	}
	return c.Dirs.CNIConfig()
}

// cniPlugins lists the folders of CNI plugins in search order.
func (c Config) cniPlugins() []string {
	if c.OwnNetwork {
		return []string{usersCNIPlugins, c.Programs.CNIDir}
	}
	return []string{c.Programs.CNIDir}
}

// ShimSockets is the folder of the shims' sockets. Socket names are 64 bytes long and containerd limits the folder to
// 42 bytes, so for a run directory of more than 29 bytes the folder is in /run, named after a hash of the directory.
func ShimSockets(dirs layout.Dirs) string {
	const maxLen = 42 // containerd's limit for socket_dir
	if d := filepath.Join(dirs.ContainerdState(), "s"); len(d) <= maxLen {
		return d
	}
	sum := sha256.Sum256([]byte(dirs.Run))
	return "/run/umiak-" + hex.EncodeToString(sum[:4]) + "/s"
}

// ttrpcSocket is the socket to which shims report events.
func ttrpcSocket(dirs layout.Dirs) string { return dirs.ContainerdSocket() + ".ttrpc" }

// render returns containerd's configuration.
func (c Config) render(s settings) *srvconfig.Config {
	return &srvconfig.Config{
		Version:         version.ConfigVersion,
		Root:            c.Dirs.ContainerdRoot(),
		State:           c.Dirs.ContainerdState(),
		RequiredPlugins: required,
		DisabledPlugins: disabled,
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":  map[string]any{"address": c.Dirs.ContainerdSocket()},
			"io.containerd.server.v1.ttrpc": map[string]any{"address": ttrpcSocket(c.Dirs)},
			"io.containerd.shim.v1.manager": map[string]any{"socket_dir": ShimSockets(c.Dirs)},
			"io.containerd.transfer.v1.local": map[string]any{
				// Layers that one pull fetches at the same time; each is buffered and unpacked in memory.
				"max_concurrent_downloads": 3,
				"unpack_config": []map[string]any{
					{"platform": platform(), "snapshotter": s.snapshotter, "differ": "walking"},
				},
			},
			"io.containerd.grpc.v1.cri": map[string]any{
				"disable_tcp_service": true,
				// The server for exec, attach and port-forward. It accepts only one-time tokens, which the kubelet gets
				// over the CRI socket. containerd has no other transport for it.
				"stream_server_address": "127.0.0.1",
				"stream_server_port":    "0",
			},
			"io.containerd.cri.v1.images": map[string]any{
				"snapshotter":   s.snapshotter,
				"pinned_images": map[string]string{"sandbox": pauseImage},
				// Interval in seconds at which containerd measures each container's writable layer by walking its
				// files. The kubelet's ephemeral storage limits depend on it.
				"stats_collect_period": 60,
			},
			"io.containerd.cri.v1.runtime": map[string]any{
				// The kubelet's cadvisor measures CPU use; by default containerd would ask every shim once a second.
				"stats_collect_period":                   "1h",
				"stats_retention_period":                 "2h",
				"restrict_oom_score_adj":                 s.restrictOOM,
				"netns_mounts_under_state_dir":           true,
				"enable_unprivileged_ports":              true,
				"enable_unprivileged_icmp":               true,
				"enable_criu":                            false,
				"enable_selinux":                         c.SELinux,
				"device_ownership_from_security_context": c.NonrootDevices,
				// umiak logs its own, single warning about cgroup v1.
				"ignore_deprecation_warnings": []string{"io.containerd.deprecation/cgroup-v1"},
				"cni": map[string]any{
					"bin_dirs":     c.cniPlugins(),
					"conf_dir":     c.CNIConfigDir(),
					"max_conf_num": 1,
					// Sets the loopback interface up in this process, instead of running a plugin for each pod.
					"use_internal_loopback": true,
				},
				"containerd": c.runtimes(s),
			},
		},
	}
}

// text returns the configuration as TOML, for people to read; nothing reads the file.
func text(c *srvconfig.Config) ([]byte, error) {
	b, err := toml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode containerd's configuration: %w", err)
	}
	return append([]byte("# The configuration of umiak's containerd. Written at every start; changes here have no effect.\n"), b...), nil
}
