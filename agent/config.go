package agent

import (
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/umiak-io/umiak/agent/dataplane/network"
	"github.com/umiak-io/umiak/agent/dataplane/proxy"
	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/agent/kubelet"
	"github.com/umiak-io/umiak/agent/runtime/foreign"
	"github.com/umiak-io/umiak/agent/runtime/imageshare"
	"github.com/umiak-io/umiak/internal/componentflags"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/nodename"
)

// Config is what a user may set on a node. Derived values are methods, not fields.
type Config struct {
	_       struct{} `topic:"Directories"`
	DataDir string   `key:"data-dir" default:"/var/lib/umiak" usage:"where everything that survives a reboot is kept"`
	RunDir  string   `key:"run-dir" default:"/run/umiak" usage:"sockets and other state of this boot"`

	_      struct{} `topic:"Joining"`
	Server string   `key:"server" usage:"URL of a server to join, as https://HOST:6443"`
	Token  string   `key:"token" secret:"true" usage:"token with which to join"`
	// On a command line everybody on the machine can read a token.
	TokenFile    string      `key:"token-file" secret:"file" usage:"file that holds the token"`
	BalancerPort config.Port `key:"lb-server-port" default:"6444" usage:"port on 127.0.0.1 at which this node reaches whichever server answers"`

	_               struct{}       `topic:"Node"`
	WithNodeID      bool           `key:"with-node-id" usage:"append a random suffix to the node's name at the first start, for machines of one image"`
	NodeName        string         `key:"node-name" usage:"name of the node, which stays when it has joined (default: the host name)"`
	NodeIP          []nodeip.Asked `key:"node-ip" usage:"addresses to advertise for the node, one a family, or interfaces that have them (default: that of the default route's interface)"`
	NodeExternalIP  []netip.Addr   `key:"node-external-ip" usage:"addresses by which others reach the node through a router"`
	NodeInternalDNS []string       `key:"node-internal-dns" usage:"names of the node inside of its network, with a domain"`
	NodeExternalDNS []string       `key:"node-external-dns" usage:"names by which others reach the node, with a domain"`
	NodeLabel       []string       `key:"node-label" usage:"label to register the node with, as KEY=VALUE"`
	NodeTaint       []string       `key:"node-taint" usage:"taint to register the node with, as KEY=VALUE:EFFECT"`
	KubeletArg      []string       `key:"kubelet-arg" usage:"flag for the kubelet, as NAME=VALUE"`
	KubeletConfigs  string         `key:"kubelet-config-dir" default:"/etc/umiak/kubelet.d" usage:"folder with files of KubeletConfiguration (*.yaml, *.conf), for what kubelet-arg cannot say"`
	ProtectKernel   bool           `key:"protect-kernel-defaults" usage:"refuse to run the kubelet where kernel settings differ from those that it needs, instead of changing them"`
	CgroupRoot      string         `key:"cgroup-root" default:"/" usage:"cgroup under which pods are put"`
	EnablePprof     bool           `key:"enable-pprof" usage:"serve profiles of this process at run-dir/pprof.sock, for root"`
	ShutdownGrace   time.Duration  `key:"shutdown-grace-period" default:"30s" usage:"how long pods get to stop when the machine shuts down; 0s turns it off"`

	_ struct{} `topic:"Addresses and ports"`
	// BindAddress is the kubelet's on an agent. On a server, the API server has the setting.
	BindAddress     netip.Addr     `key:"bind-address" usage:"address to listen on: the API server on a server, the kubelet on an agent (default: all)"`
	KubeletPort     config.Port    `key:"kubelet-port" default:"10250" usage:"port of the kubelet's authenticated API"`
	KubeletPortFrom []config.Range `key:"kubelet-port-from" usage:"range outside the cluster from which the kubelet's port is reached, as 192.168.1.0/24; 0.0.0.0/0 and ::/0 are all (default: none)"`
	FlannelIface    string         `key:"flannel-iface" usage:"interface for traffic between nodes (default: that of node-ip)"`
	FlannelConf     string         `key:"flannel-conf" usage:"file in the format of flannel's net-conf.json with MTU, DirectRouting or PersistentKeepaliveInterval of the backend"`
	FlannelCNIConf  string         `key:"flannel-cni-conf" usage:"file in the format of flannel's CNI configuration, with hairpinMode, promiscMode or mtu of the bridge"`
	ResolvConf      string         `key:"resolv-conf" usage:"resolv.conf with the host's name servers (default: found)"`
	KubeProxyArg    []string       `key:"kube-proxy-arg" usage:"flag of kube-proxy for the node's service proxy, as NAME=VALUE: nodeport-addresses or metrics-bind-address; its others have no effect"`
	PodSourceCheck  bool           `key:"pod-source-check" default:"true" usage:"drop what pods send with other addresses than their own; false for pods that forward others' packets"`

	_                 struct{} `topic:"Images and containers"`
	PrivateRegistry   string   `key:"private-registry" default:"/etc/umiak/registries.yaml" usage:"registry mirrors and credentials"`
	NoDefaultRegistry bool     `key:"disable-default-registry-endpoint" usage:"never ask a registry itself that has a mirror in private-registry"`
	ImageSharing      bool     `key:"image-sharing" default:"true" usage:"give images to the cluster's other nodes, at port 5001, and take them from there"`
	CredentialBinDir  string   `key:"image-credential-provider-bin-dir" usage:"folder with the programs of credential providers for registries"`
	CredentialConfig  string   `key:"image-credential-provider-config" usage:"file or folder of CredentialProviderConfig"`
	ImageImportLimit  int      `key:"image-import-parallel" default:"1" usage:"image archives to import at once"`
	Snapshotter       string   `key:"snapshotter" default:"overlayfs" values:"overlayfs,native" usage:"containerd snapshotter"`
	RuntimeEndpoint   string   `key:"container-runtime-endpoint" usage:"socket of a containerd or CRI-O that is installed on this machine, to be used instead of the built-in containerd"`
	DefaultRuntime    string   `key:"default-runtime" default:"runc" values:"runc,crun,youki,nvidia" usage:"OCI runtime of pods without a RuntimeClass; all but runc have to be installed"`
	SELinux           bool     `key:"selinux" usage:"give containers SELinux labels"`
	NonrootDevices    bool     `key:"nonroot-devices" usage:"give devices in a container to the user and group of its security context"`

	_              struct{} `topic:"Upgrades"`
	UpgradeSources []string `key:"upgrade-sources" usage:"place of releases from which the cluster may have this node upgraded, besides that from which it was installed"`
}

// Dirs are the node's directories.
func (c Config) Dirs() layout.Dirs { return layout.Dirs{Data: c.DataDir, Run: c.RunDir} }

// Name is the node's name: what was set, the one with which it joined, or the host name.
func (c Config) Name() (string, error) {
	n, err := c.FindName().Find()
	return n.Name, err
}

// RuntimeSocket returns the socket of the node's container runtime, and whether that is not Umiak's containerd.
func (c Config) RuntimeSocket() (path string, other bool) {
	if path, err := foreign.Socket(c.RuntimeEndpoint); err == nil { // Validate reports the error
		return path, true
	}
	return c.Dirs().ContainerdSocket(), false
}

// FindName finds, or claims, the node's name.
func (c Config) FindName() nodename.Finder {
	return nodename.Finder{Dirs: c.Dirs(), Set: c.NodeName, WithID: c.WithNodeID}
}

// Validate returns all that is wrong, each with its key and the remedy. It reads the files that settings name.
func (c Config) Validate() error {
	var m config.Mistakes
	m.Join(c.ValidateValues(), c.kubelet().CheckFiles())
	if _, err := network.ReadFlannelConf(c.FlannelConf); err != nil {
		m.Add("flannel-conf", "%w", err)
	}
	if _, err := network.ReadCNIConf(c.FlannelCNIConf); err != nil {
		m.Add("flannel-cni-conf", "%w", err)
	}
	return m.Err()
}

// PassedOver returns a sentence for each file that looks as if it were read for these settings and is not, and for
// flags that have no effect.
func (c Config) PassedOver() []string {
	flags, _ := proxy.ParseFlags(c.KubeProxyArg) // Validate returns the error
	return append(kubelet.Config{ConfigDir: c.KubeletConfigs, Args: c.KubeletArg}.PassedOver(), flags.Remarks()...)
}

// kubelet returns what the settings determine of the kubelet's configuration.
func (c Config) kubelet() kubelet.Config {
	return kubelet.Config{
		Labels: c.NodeLabel, Taints: c.NodeTaint, Args: c.KubeletArg, ConfigDir: c.KubeletConfigs,
		Port: int(c.KubeletPort), ShutdownGrace: c.ShutdownGrace, ProtectKernel: c.ProtectKernel,
		CredentialProviders: c.credentialProviders(),
	}
}

// credentialProviders returns the settings of the kubelet's credential providers.
func (c Config) credentialProviders() kubelet.CredentialProviders {
	return kubelet.CredentialProviders{BinDir: c.CredentialBinDir, Config: c.CredentialConfig}
}

// Verbosity returns what the kubelet's flags ask of the log.
func (c Config) Verbosity() componentflags.Verbosity {
	v, _, _ := componentflags.TakeVerbosity("kubelet-arg", c.KubeletArg) // Validate reports the error
	return v
}

// maxRunDir bounds the length of run-dir in bytes: a unix socket's address holds 108, unix(7), and the longest name
// of a socket below run-dir has 40.
const maxRunDir = 64

// minGrace is the shortest shutdown-grace-period: the kubelet needs a second for critical pods and one for the others.
const minGrace = 2 * time.Second

// ValidateValues is Validate for settings of another machine, whose files are not here, and for a start, where the
// kubelet waits for them.
func (c Config) ValidateValues() error {
	var m config.Mistakes
	for _, p := range []struct{ key, path string }{{"data-dir", c.DataDir}, {"run-dir", c.RunDir},
		{"cgroup-root", c.CgroupRoot}} {
		if !strings.HasPrefix(p.path, "/") {
			m.Add(p.key, "%q is not an absolute path", p.path)
		}
	}
	if c.DataDir == c.RunDir {
		m.Add("run-dir", "must not be the data-dir")
	}
	if len(c.RunDir) > maxRunDir {
		m.Add("run-dir", "%q is too long for the sockets below it, %d bytes at most", c.RunDir, maxRunDir)
	}
	if _, err := c.Name(); err != nil {
		m.Join(err)
	}
	for _, a := range c.NodeExternalIP {
		if a.Zone() != "" {
			m.Add("node-external-ip", "%q is not an IP address", a)
		}
	}
	checkNames(&m, "node-internal-dns", c.NodeInternalDNS)
	checkNames(&m, "node-external-dns", c.NodeExternalDNS)
	c.checkNodeIPs(&m)
	c.checkPorts(&m)
	if c.Token != "" && c.TokenFile != "" {
		m.Add("token-file", "token is set as well; set one of them")
	}
	if c.RuntimeEndpoint != "" {
		if _, err := foreign.Socket(c.RuntimeEndpoint); err != nil {
			m.Add("container-runtime-endpoint", "%w", err)
		}
	}
	if c.ImageImportLimit < 0 {
		m.Add("image-import-parallel", "%d is not a number of archives; 1 imports one after the other",
			c.ImageImportLimit)
	}
	if d := c.ShutdownGrace; d < 0 || d > 0 && d < minGrace {
		m.Add("shutdown-grace-period", "%s is too short: %s is the least, or 0s to stop no pods in order", d, minGrace)
	}
	_, err := proxy.ParseFlags(c.KubeProxyArg)
	m.Join(c.kubelet().Check(), err)
	return m.Err()
}

// checkNames adds what is wrong with further names of the node.
func checkNames(m *config.Mistakes, key string, names []string) {
	for _, name := range names {
		if e := validation.IsDNS1123Subdomain(name); len(e) > 0 {
			m.Add(key, "%q: %s", name, strings.Join(e, ", "))
		} else if !strings.Contains(name, ".") {
			m.Add(key, "%q has no domain: write it as %s.example.com", name, name)
		}
	}
}

// checkNodeIPs adds what is wrong with node-ip. The kubelet reports no address of these kinds.
func (c Config) checkNodeIPs(m *config.Mistakes) {
	families := map[bool]netip.Addr{}
	for _, asked := range c.NodeIP {
		if asked.Interface != "" {
			continue
		}
		a := asked.Addr
		ip := a.Unmap()
		switch {
		case ip.IsUnspecified():
			m.Add("node-ip", "%s stands for any address; name the one at which other nodes reach this node, or leave it out", a)
		case ip.IsLoopback():
			m.Add("node-ip", "%s is this machine's own loopback, at which no other node reaches it", a)
		case ip.IsMulticast():
			m.Add("node-ip", "%s is a multicast address, no node's", a)
		case ip.IsLinkLocalUnicast():
			m.Add("node-ip", "%s is a link-local address, which Kubernetes takes for no node", a)
		}
		if other, ok := families[ip.Is4()]; ok {
			m.Add("node-ip", "%s and %s are of the same family; one IPv4 and one IPv6 address at most", other, a)
		}
		families[ip.Is4()] = a
	}
}

// checkPorts adds an error where two parts of the node would listen on the same port.
func (c Config) checkPorts(m *config.Mistakes) {
	if c.BalancerPort == c.KubeletPort {
		m.AddWith("lb-server-port", []string{"kubelet-port"}, "%s is kubelet-port as well", c.BalancerPort)
	}
	if !c.ImageSharing {
		return
	}
	for _, p := range []struct {
		key  string
		port config.Port
	}{{"lb-server-port", c.BalancerPort}, {"kubelet-port", c.KubeletPort}} {
		if p.port == imageshare.Port {
			m.Add(p.key, "%s is the port of image-sharing", p.port)
		}
	}
}

// kubeletFrom returns the ranges of kubelet-port-from.
func (c Config) kubeletFrom() (out []netip.Prefix) {
	for _, r := range c.KubeletPortFrom {
		out = append(out, r.Prefix)
	}
	return out
}

// ownAddresses returns what the settings add to the addresses of the Node.
func (c Config) ownAddresses() (out []corev1.NodeAddress) {
	for _, l := range []struct {
		kind corev1.NodeAddressType
		list []string
	}{{corev1.NodeExternalIP, config.Texts(c.NodeExternalIP)}, {corev1.NodeInternalDNS, c.NodeInternalDNS},
		{corev1.NodeExternalDNS, c.NodeExternalDNS}} {
		for _, a := range l.list {
			out = append(out, corev1.NodeAddress{Type: l.kind, Address: a})
		}
	}
	return out
}
