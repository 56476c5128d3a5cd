package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/umiak-io/umiak/internal/layout"
)

// Config is what a user may set on a node. Derived values are methods, not fields.
type Config struct {
	DataDir string `key:"data-dir" default:"/var/lib/umiak" usage:"where everything that survives a reboot is kept"`
	RunDir  string `key:"run-dir" default:"/run/umiak" usage:"sockets and other state of this boot"`

	Server string `key:"server" usage:"URL of a server to join, as https://HOST:6443"`
	Token  string `key:"token" secret:"true" usage:"token with which to join"`
	// On a command line everybody on the machine can read a token.
	TokenFile    string `key:"token-file" usage:"file that holds the token"`
	BalancerPort int    `key:"lb-server-port" default:"6444" usage:"port on 127.0.0.1 at which this node reaches whichever server answers"`

	NodeName       string   `key:"node-name" usage:"name of the node (default: the host name)"`
	NodeIP         []string `key:"node-ip" usage:"addresses to advertise for the node, one a family (default: that of the default route's interface)"`
	NodeExternalIP []string `key:"node-external-ip" usage:"external addresses to advertise for the node"`
	NodeLabel      []string `key:"node-label" usage:"label to register the node with, as KEY=VALUE"`
	NodeTaint      []string `key:"node-taint" usage:"taint to register the node with, as KEY=VALUE:EFFECT"`
	KubeletArg     []string `key:"kubelet-arg" usage:"flag for the kubelet, as NAME=VALUE without dashes"`

	ResolvConf       string `key:"resolv-conf" usage:"resolv.conf with the host's name servers (default: found)"`
	PrivateRegistry  string `key:"private-registry" default:"/etc/umiak/registries.yaml" usage:"registry mirrors and credentials"`
	Snapshotter      string `key:"snapshotter" default:"overlayfs" usage:"containerd snapshotter: overlayfs or native"`
	CgroupRoot       string `key:"cgroup-root" default:"/" usage:"cgroup under which pods are put"`
	FlannelIface     string `key:"flannel-iface" usage:"interface for traffic between nodes (default: that of node-ip)"`
	KubeletPort      int    `key:"kubelet-port" default:"10250" usage:"port of the kubelet's authenticated API"`
	ShutdownGrace    string `key:"shutdown-grace-period" default:"30s" usage:"how long pods get to stop when the machine shuts down; 0s turns it off"`
	ImageSharing     bool   `key:"image-sharing" default:"true" usage:"give images to the cluster's other nodes, at port 5001, and take them from there"`
	ImageImportLimit int    `key:"image-import-parallel" default:"1" usage:"image archives to import at once"`

	NoDefaultRegistry bool `key:"disable-default-registry-endpoint" usage:"never ask a registry itself that has a mirror in private-registry"`
}

// Dirs are the node's directories.
func (c Config) Dirs() layout.Dirs { return layout.Dirs{Data: c.DataDir, Run: c.RunDir} }

// Name is the node's name: what was set or the host name, lower case.
func (c Config) Name() (string, error) {
	if c.NodeName != "" {
		return c.NodeName, nil
	}
	h, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("find the host name (set node-name): %w", err)
	}
	return strings.ToLower(h), nil
}

// Validate returns all that is wrong, each with its key and the remedy.
func (c Config) Validate() error {
	var errs []error
	fail := func(key, format string, a ...any) { errs = append(errs, fmt.Errorf(key+": "+format, a...)) }
	for key, dir := range map[string]string{"data-dir": c.DataDir, "run-dir": c.RunDir, "cgroup-root": c.CgroupRoot} {
		if !strings.HasPrefix(dir, "/") {
			fail(key, "%q is not an absolute path", dir)
		}
	}
	if c.DataDir == c.RunDir {
		fail("run-dir", "must not be the data-dir")
	}
	// 108 bytes is what a unix socket's address holds, unix(7); the longest socket name below is 40.
	if len(c.RunDir) > 64 {
		fail("run-dir", "%q is too long for the sockets below it, 64 bytes at most", c.RunDir)
	}
	if n, err := c.Name(); err != nil {
		errs = append(errs, err)
	} else if e := validation.IsDNS1123Subdomain(n); len(e) > 0 {
		fail("node-name", "%q: %s", n, strings.Join(e, ", "))
	}
	for key, list := range map[string][]string{"node-ip": c.NodeIP, "node-external-ip": c.NodeExternalIP} {
		for _, a := range list {
			if _, err := netip.ParseAddr(a); err != nil {
				fail(key, "%q is not an IP address", a)
			}
		}
	}
	if len(c.NodeIP) > 2 {
		fail("node-ip", "one address a family, at most two")
	}
	for _, l := range c.NodeLabel {
		k, v, ok := strings.Cut(l, "=")
		if e := append(validation.IsQualifiedName(k), validation.IsValidLabelValue(v)...); !ok || len(e) > 0 {
			fail("node-label", "%q is not KEY=VALUE: %s", l, strings.Join(e, ", "))
		}
	}
	if c.BalancerPort < 1 || c.BalancerPort > 65535 {
		fail("lb-server-port", "%d is not a port, 1 to 65535", c.BalancerPort)
	}
	if c.Token != "" && c.TokenFile != "" {
		fail("token-file", "token is set as well; set one of them")
	}
	if c.Snapshotter != "overlayfs" && c.Snapshotter != "native" {
		fail("snapshotter", "%q is neither overlayfs nor native", c.Snapshotter)
	}
	for _, a := range c.KubeletArg {
		if !strings.Contains(a, "=") || strings.HasPrefix(a, "-") {
			fail("kubelet-arg", "%q is not NAME=VALUE", a)
		}
	}
	return errors.Join(errs...)
}
