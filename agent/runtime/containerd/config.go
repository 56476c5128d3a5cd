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

// Namespace is containerd's namespace of everything that the kubelet runs.
const Namespace = "k8s.io"

// Config is what the node's containerd is made from.
type Config struct {
	Dirs     layout.Dirs
	Programs programs.Programs
	// Snapshotter is overlayfs or native. Where the data directory's file system cannot carry
	// overlayfs, native is used, with a warning.
	Snapshotter string
	// SystemdCgroup makes runc ask systemd for cgroups; it must be what the kubelet is told.
	SystemdCgroup bool
	// OwnNetwork means that the user brings the pod network: its configuration and plugins are looked for where the
	// world's networks put them, and ours beside them.
	OwnNetwork bool
	// ShimCgroup is where shims live; "" leaves them in umiak's own cgroup.
	ShimCgroup string
	// Registry says how to reach a registry; nil is as the image's name says.
	Registry Registry
	Log      *slog.Logger
}

// settings are what is found out at start.
type settings struct {
	snapshotter string
	restrictOOM bool
}

// Where networks that are installed by a manifest put their configuration and their plugins.
const (
	usersCNIConfig  = "/etc/cni/net.d"
	usersCNIPlugins = "/opt/cni/bin"
)

// CNIConfigDir is the folder that the network's configuration is read from.
func (c Config) CNIConfigDir() string {
	if c.OwnNetwork {
		return usersCNIConfig
	}
	return c.Dirs.CNIConfig()
}

// cniPlugins are the folders of plugins; the first that has one wins.
func (c Config) cniPlugins() []string {
	if c.OwnNetwork {
		return []string{usersCNIPlugins, c.Programs.CNIDir}
	}
	return []string{c.Programs.CNIDir}
}

// ShimSockets is the folder of the shims' sockets. Their names are 64 bytes long, so a run directory of
// more than 29 bytes has no room for them: then it is a folder in /run named after the directory.
func ShimSockets(dirs layout.Dirs) string {
	const longest = 42 // containerd's own limit
	if d := filepath.Join(dirs.ContainerdState(), "s"); len(d) <= longest {
		return d
	}
	sum := sha256.Sum256([]byte(dirs.Run))
	return "/run/umiak-" + hex.EncodeToString(sum[:4]) + "/s"
}

// ttrpcSocket is where shims report events.
func ttrpcSocket(dirs layout.Dirs) string { return dirs.ContainerdSocket() + ".ttrpc" }

// render returns containerd's configuration.
func (c Config) render(s settings) *srvconfig.Config {
	state := c.Dirs.ContainerdState()
	return &srvconfig.Config{
		Version:         version.ConfigVersion,
		Root:            c.Dirs.ContainerdRoot(),
		State:           state,
		RequiredPlugins: required,
		DisabledPlugins: disabled,
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":  map[string]any{"address": c.Dirs.ContainerdSocket()},
			"io.containerd.server.v1.ttrpc": map[string]any{"address": ttrpcSocket(c.Dirs)},
			"io.containerd.shim.v1.manager": map[string]any{"socket_dir": ShimSockets(c.Dirs)},
			"io.containerd.transfer.v1.local": map[string]any{
				// Layers of a pull that are fetched at once; each is buffered and unpacked in memory.
				"max_concurrent_downloads": 3,
				"unpack_config": []map[string]any{
					{"platform": platform(), "snapshotter": s.snapshotter, "differ": "walking"},
				},
			},
			"io.containerd.grpc.v1.cri": map[string]any{
				"disable_tcp_service": true,
				// exec, attach and port-forward: the kubelet connects here with a one-time token from
				// the CRI socket, and nothing else is answered. containerd has no other way.
				"stream_server_address": "127.0.0.1",
				"stream_server_port":    "0",
			},
			"io.containerd.cri.v1.images": map[string]any{
				"snapshotter":   s.snapshotter,
				"pinned_images": map[string]string{"sandbox": PauseImage},
				// How often (in seconds) each container's writable layer is measured, which is a walk
				// over its files; the kubelet's limits on ephemeral storage act on it.
				"stats_collect_period": 60,
			},
			"io.containerd.cri.v1.runtime": map[string]any{
				// CPU use comes from the kubelet's cadvisor; containerd would ask every shim once a second.
				"stats_collect_period":         "1h",
				"stats_retention_period":       "2h",
				"restrict_oom_score_adj":       s.restrictOOM,
				"netns_mounts_under_state_dir": true,
				"enable_unprivileged_ports":    true,
				"enable_unprivileged_icmp":     true,
				"enable_criu":                  false,
				// umiak says itself, once, what an old kernel setup costs.
				"ignore_deprecation_warnings": []string{"io.containerd.deprecation/cgroup-v1"},
				"cni": map[string]any{
					"bin_dirs":     c.cniPlugins(),
					"conf_dir":     c.CNIConfigDir(),
					"max_conf_num": 1,
					// Brings lo up in the process, instead of running a program for each pod.
					"use_internal_loopback": true,
				},
				"containerd": map[string]any{
					"default_runtime_name": "runc",
					"runtimes": map[string]any{
						"runc": map[string]any{
							"runtime_type": "io.containerd.runc.v2",
							"runtime_path": c.Programs.Shim,
							"sandboxer":    "podsandbox",
							// It is made from the bundle: a name that resolves nowhere must not be asked for.
							"disable_pause_image_pull": true,
							"options": map[string]any{
								"BinaryName":    c.Programs.Runc,
								"Root":          filepath.Join(state, "runc"),
								"SystemdCgroup": c.SystemdCgroup,
								"ShimCgroup":    c.ShimCgroup,
							},
						},
					},
				},
			},
		},
	}
}

// text is the configuration as a file, for people to read.
func text(c *srvconfig.Config) ([]byte, error) {
	b, err := toml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("write containerd's configuration: %w", err)
	}
	return append([]byte("# What umiak's containerd runs with. Written at every start, read by nobody.\n"), b...), nil
}
