package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/umiak-io/umiak/agent/kubelet"
	"github.com/umiak-io/umiak/agent/runtime/imageshare"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/nodename"
)

// Config is what a user may set on a node. Derived values are methods, not fields.
type Config struct {
	DataDir string `key:"data-dir" default:"/var/lib/umiak" usage:"where everything that survives a reboot is kept"`
	RunDir  string `key:"run-dir" default:"/run/umiak" usage:"sockets and other state of this boot"`

	Server string `key:"server" usage:"URL of a server to join, as https://HOST:6443"`
	Token  string `key:"token" secret:"true" usage:"token with which to join"`
	// On a command line everybody on the machine can read a token.
	TokenFile    string `key:"token-file" secret:"file" usage:"file that holds the token"`
	BalancerPort int    `key:"lb-server-port" default:"6444" usage:"port on 127.0.0.1 at which this node reaches whichever server answers"`

	NodeName       string   `key:"node-name" usage:"name of the node, which stays when it has joined (default: the host name)"`
	NodeIP         []string `key:"node-ip" usage:"addresses to advertise for the node, one a family (default: that of the default route's interface)"`
	NodeExternalIP []string `key:"node-external-ip" usage:"addresses by which others reach the node through a router"`
	NodeLabel      []string `key:"node-label" usage:"label to register the node with, as KEY=VALUE"`
	NodeTaint      []string `key:"node-taint" usage:"taint to register the node with, as KEY=VALUE:EFFECT"`
	KubeletArg     []string `key:"kubelet-arg" usage:"flag for the kubelet, as NAME=VALUE"`
	KubeletConfigs string   `key:"kubelet-config-dir" default:"/etc/umiak/kubelet.d" usage:"folder with files of KubeletConfiguration (*.yaml, *.conf), for what kubelet-arg cannot say"`

	ResolvConf       string   `key:"resolv-conf" usage:"resolv.conf with the host's name servers (default: found)"`
	PrivateRegistry  string   `key:"private-registry" default:"/etc/umiak/registries.yaml" usage:"registry mirrors and credentials"`
	Snapshotter      string   `key:"snapshotter" default:"overlayfs" usage:"containerd snapshotter: overlayfs or native"`
	CgroupRoot       string   `key:"cgroup-root" default:"/" usage:"cgroup under which pods are put"`
	FlannelIface     string   `key:"flannel-iface" usage:"interface for traffic between nodes (default: that of node-ip)"`
	KubeletPort      int      `key:"kubelet-port" default:"10250" usage:"port of the kubelet's authenticated API"`
	KubeletPortFrom  []string `key:"kubelet-port-from" usage:"range outside the cluster from which the kubelet's port is reached, as 192.168.1.0/24; 0.0.0.0/0 and ::/0 are all (default: none)"`
	ShutdownGrace    string   `key:"shutdown-grace-period" default:"30s" usage:"how long pods get to stop when the machine shuts down; 0s turns it off"`
	ImageSharing     bool     `key:"image-sharing" default:"true" usage:"give images to the cluster's other nodes, at port 5001, and take them from there"`
	PodSourceCheck   bool     `key:"pod-source-check" default:"true" usage:"drop what pods send with other addresses than their own; false for pods that forward others' packets"`
	ImageImportLimit int      `key:"image-import-parallel" default:"1" usage:"image archives to import at once"`

	UpgradeSources    []string `key:"upgrade-sources" usage:"place of releases from which the cluster may have this node upgraded, besides that from which it was installed"`
	NoDefaultRegistry bool     `key:"disable-default-registry-endpoint" usage:"never ask a registry itself that has a mirror in private-registry"`
}

// Dirs are the node's directories.
func (c Config) Dirs() layout.Dirs { return layout.Dirs{Data: c.DataDir, Run: c.RunDir} }

// Name is the node's name: what was set, the one with which it joined, or the host name.
func (c Config) Name() (string, error) {
	n, err := c.FindName().Find()
	return n.Name, err
}

// FindName finds, or claims, the node's name.
func (c Config) FindName() nodename.Finder { return nodename.Finder{Dirs: c.Dirs(), Set: c.NodeName} }

// Validate returns all that is wrong, each with its key and the remedy. It reads the files that settings name.
func (c Config) Validate() error {
	k, err := c.kubelet()
	if err == nil {
		err = k.CheckFiles()
	}
	return errors.Join(c.ValidateValues(), err)
}

// PassedOver returns a sentence for each file that looks as if it were read for these settings and is not.
func (c Config) PassedOver() []string {
	return kubelet.Config{ConfigDir: c.KubeletConfigs}.PassedOver()
}

// kubelet is what the settings say of the kubelet.
func (c Config) kubelet() (kubelet.Config, error) {
	grace, err := c.Grace()
	return kubelet.Config{Labels: c.NodeLabel, Taints: c.NodeTaint, Args: c.KubeletArg, ConfigDir: c.KubeletConfigs, Port: c.KubeletPort, ShutdownGrace: grace}, err
}

// ValidateValues is Validate for settings of another machine, whose files are not here, and for a start, where the kubelet
// waits for them.
func (c Config) ValidateValues() error {
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
	if _, err := c.Name(); err != nil {
		errs = append(errs, err)
	}
	for _, a := range c.NodeExternalIP {
		if _, err := netip.ParseAddr(a); err != nil {
			fail("node-external-ip", "%q is not an IP address", a)
		}
	}
	errs = append(errs, checkNodeIPs(c.NodeIP), c.checkPorts())
	if c.BalancerPort < 1 || c.BalancerPort > 65535 {
		fail("lb-server-port", "%d is not a port, 1 to 65535", c.BalancerPort)
	}
	if c.Token != "" && c.TokenFile != "" {
		fail("token-file", "token is set as well; set one of them")
	}
	if c.Snapshotter != "overlayfs" && c.Snapshotter != "native" {
		fail("snapshotter", "%q is neither overlayfs nor native", c.Snapshotter)
	}
	k, err := c.kubelet()
	if err != nil {
		errs = append(errs, err)
	}
	if c.KubeletPort < 1 || c.KubeletPort > 65535 {
		fail("kubelet-port", "%d is not a port, 1 to 65535", c.KubeletPort)
	}
	if _, err := c.KubeletRanges(); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, k.Check())
	return errors.Join(errs...)
}

// checkNodeIPs returns what is wrong with node-ip. The kubelet reports no address of these kinds.
func checkNodeIPs(list []string) error {
	var errs []error
	fail := func(format string, a ...any) { errs = append(errs, fmt.Errorf("node-ip: "+format, a...)) }
	families := map[bool]string{}
	for _, s := range list {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			fail("%q is not an IP address", s)
			continue
		}
		a = a.Unmap()
		switch {
		case a.IsUnspecified():
			fail("%s stands for any address; name the one at which other nodes reach this node, or leave it out", s)
		case a.IsLoopback():
			fail("%s is this machine's own loopback, at which no other node reaches it", s)
		case a.IsMulticast():
			fail("%s is a multicast address, no node's", s)
		case a.IsLinkLocalUnicast():
			fail("%s is a link-local address, which Kubernetes takes for no node", s)
		}
		if other := families[a.Is4()]; other != "" {
			fail("%s and %s are of the same family; one IPv4 and one IPv6 address at most", other, s)
		}
		families[a.Is4()] = s
	}
	return errors.Join(errs...)
}

// checkPorts returns an error where two parts of the node would listen on the same port.
func (c Config) checkPorts() error {
	var errs []error
	if c.BalancerPort == c.KubeletPort {
		errs = append(errs, fmt.Errorf("lb-server-port: %d is kubelet-port as well", c.BalancerPort))
	}
	for key, p := range map[string]int{"lb-server-port": c.BalancerPort, "kubelet-port": c.KubeletPort} {
		if c.ImageSharing && p == imageshare.Port {
			errs = append(errs, fmt.Errorf("%s: %d is the port of image-sharing", key, p))
		}
	}
	return errors.Join(errs...)
}

// KubeletRanges are those of kubelet-port-from; an address is a range of its own.
func (c Config) KubeletRanges() (out []netip.Prefix, err error) {
	for _, s := range c.KubeletPortFrom {
		p, err := netip.ParsePrefix(s)
		if a, notRange := netip.ParseAddr(s); err != nil && notRange == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("kubelet-port-from: %q is not a range as 192.168.1.0/24", s)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// Grace is shutdown-grace-period. The kubelet needs a second for critical pods and one for the others.
func (c Config) Grace() (time.Duration, error) {
	d, err := time.ParseDuration(c.ShutdownGrace)
	switch {
	case err != nil:
		return 0, fmt.Errorf("shutdown-grace-period: %q is not a duration such as 30s", c.ShutdownGrace)
	case d < 0 || d > 0 && d < 2*time.Second:
		return 0, fmt.Errorf("shutdown-grace-period: %s is too short: 2s is the least, or 0s to stop no pods in order", c.ShutdownGrace)
	}
	return d, nil
}
