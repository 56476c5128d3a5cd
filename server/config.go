package server

import (
	"cmp"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/internal/componentflags"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/nodename"
	"github.com/umiak-io/umiak/server/backup"
	"github.com/umiak-io/umiak/server/pki"
	"github.com/umiak-io/umiak/server/servicelb"
)

// Config holds the settings of a server.
type Config struct {
	_       struct{} `topic:"Directories"`
	DataDir string   `key:"data-dir" default:"/var/lib/umiak" usage:"where everything that survives a reboot is kept"`
	RunDir  string   `key:"run-dir" default:"/run/umiak" usage:"sockets and other state of this boot"`

	_              struct{} `topic:"Joining"`
	Server         string   `key:"server" usage:"URL of a server to join, as https://HOST:6443"`
	Token          string   `key:"token" secret:"true" usage:"token or password with which machines join (default: made at the first start, in data-dir/server/token)"`
	TokenFile      string   `key:"token-file" secret:"file" usage:"file that holds the token"`
	AgentToken     string   `key:"agent-token" secret:"true" usage:"token or password with which only agents join (default: made at the first start, in data-dir/server/agent-token)"`
	AgentTokenFile string   `key:"agent-token-file" secret:"file" usage:"file that holds agent-token"`
	// BalancerPort is the node's.
	BalancerPort config.Port `key:"lb-server-port" default:"6444" usage:"port on 127.0.0.1 at which this node reaches whichever server answers"`

	_          struct{} `topic:"Node"`
	NodeName   string   `key:"node-name" usage:"name of the node, which stays when it has joined (default: the host name)"`
	WithNodeID bool     `key:"with-node-id" usage:"append a random suffix to the node's name at the first start, for machines of one image"`

	_           struct{}   `topic:"Addresses and ports"`
	BindAddress netip.Addr `key:"bind-address" usage:"address to listen on: the API server on a server, the kubelet on an agent (default: all)"`
	// KubeletPort and ImageSharing are the node's.
	KubeletPort      config.Port    `key:"kubelet-port" default:"10250" usage:"port of the kubelet's authenticated API"`
	ImageSharing     bool           `key:"image-sharing" default:"true" usage:"give images to the cluster's other nodes, at port 5001, and take them from there"`
	HTTPSPort        config.Port    `key:"https-listen-port" default:"6443" usage:"port of the API server, the only one that other machines need"`
	AdvertiseAddress netip.Addr     `key:"advertise-address" usage:"address at which the API server is reached (default: node-ip)"`
	AdvertisePort    config.Port    `key:"advertise-port" usage:"port at which pods and other machines reach the API server (default: https-listen-port)"`
	NodeIP           []nodeip.Asked `key:"node-ip" usage:"addresses to advertise for the node, one a family, or interfaces that have them (default: that of the default route's interface)"`
	NodeExternalIP   []netip.Addr   `key:"node-external-ip" usage:"addresses by which others reach the node through a router"`
	TLSSAN           []pki.SAN      `key:"tls-san" usage:"more names and addresses for the server's certificate"`

	_              struct{}         `topic:"Network of the cluster"`
	ClusterCIDR    []netip.Prefix   `key:"cluster-cidr" default:"10.42.0.0/16" usage:"address range of pods, one a family"`
	ServiceCIDR    []netip.Prefix   `key:"service-cidr" default:"10.43.0.0/16" usage:"address range of Services, one a family"`
	NodePorts      config.PortRange `key:"service-node-port-range" default:"30000-32767" usage:"ports for Services of type NodePort"`
	ClusterDNS     []netip.Addr     `key:"cluster-dns" usage:"address of the DNS Service (default: the tenth of service-cidr)"`
	ClusterDomain  string           `key:"cluster-domain" default:"cluster.local" usage:"domain of the cluster's names"`
	LoadBalancers  servicelb.Pool   `key:"load-balancer-pool" usage:"addresses for Services of type LoadBalancer, as ranges or prefixes that your network sends to the nodes (default: the nodes' addresses)"`
	ExternalIPs    []netip.Prefix   `key:"service-external-ips" usage:"address ranges of which spec.externalIPs of Services may be (default: none; load balancers need none)"`
	FlannelBackend string           `key:"flannel-backend" default:"vxlan" values:"vxlan,host-gw,wireguard-native,none" usage:"network of the pods; none to bring another"`

	FlannelExternalIP    bool `key:"flannel-external-ip" usage:"send traffic of pods to the node-external-ip of nodes that have one"`
	DisableNetworkPolicy bool `key:"disable-network-policy" usage:"enforce no NetworkPolicy, as where the network of the pods does"`
	DisableKubeProxy     bool `key:"disable-kube-proxy" usage:"serve no Services on the nodes, as where the network of the pods or another proxy does"`

	_                    struct{}        `topic:"What the server deploys and writes"`
	WriteKubeconfig      string          `key:"write-kubeconfig" usage:"also write the administrator's kubeconfig here"`
	WriteKubeconfigMode  config.FileMode `key:"write-kubeconfig-mode" default:"0600" usage:"file mode of write-kubeconfig"`
	WriteKubeconfigGroup string          `key:"write-kubeconfig-group" usage:"group of write-kubeconfig, by name or number (default: root's)"`
	WriteKubeconfigName  string          `key:"write-kubeconfig-name" default:"umiak" usage:"name of cluster, user and context in write-kubeconfig"`
	Disable              []Component     `key:"disable" usage:"packaged component or manifest to leave out"`
	DisableAgent         bool            `key:"disable-agent" usage:"run no workloads on this machine"`
	DisableScheduler     bool            `key:"disable-scheduler" usage:"run no kube-scheduler; pods wait for a scheduler of yours"`

	_                 struct{} `topic:"Datastore"`
	DatastoreEndpoint string   `key:"datastore-endpoint" secret:"true" usage:"where the cluster's state is kept: postgres://, mysql://, nats://, or etcd's https:// addresses with commas between (default: in data-dir)"`
	DatastoreCA       string   `key:"datastore-cafile" usage:"CA file that datastore-endpoint's certificate is checked with"`
	DatastoreCert     string   `key:"datastore-certfile" usage:"client certificate file for datastore-endpoint"`
	DatastoreKey      string   `key:"datastore-keyfile" usage:"client key file for datastore-endpoint"`
	ClusterInit       bool     `key:"cluster-init" usage:"keep the state in etcd in this process, so that more servers can join; what SQLite has moves there"`
	ClusterReset      bool     `key:"cluster-reset" usage:"make a cluster of this server alone, out of the state that it has, when most servers are lost; once"`
	ResetRestorePath  string   `key:"cluster-reset-restore-path" usage:"snapshot, as FILE or NAME, that replaces this server's state before cluster-reset; once"`
	EtcdMetrics       bool     `key:"etcd-expose-metrics" usage:"serve the metrics of etcd at port 2381, over plain HTTP, to everybody who reaches it"`
	EtcdArg           []string `key:"etcd-arg" usage:"flag for etcd, as NAME=VALUE"`

	_         struct{} `topic:"Snapshots"`
	Snapshots backup.Config

	_ struct{} `topic:"Components of the control plane"`
	// EncryptionProvider is the cipher of the first key, and of the next one; "" means the best for a new cluster, and
	// that of the present key for a rotation.
	EncryptionProvider string   `key:"secrets-encryption-provider" values:"secretbox,aescbc,aesgcm" usage:"cipher of Secrets in the datastore, for a new cluster and for the next secrets-encrypt rotate (default: secretbox)"`
	AuditLog           string   `key:"audit-log" usage:"file for the audit log, or none (default: server/audit/audit.log in data-dir)"`
	AuditPolicy        string   `key:"audit-policy" usage:"audit policy file (default: metadata of every change)"`
	APIServerArg       []string `key:"kube-apiserver-arg" usage:"flag for kube-apiserver, as NAME=VALUE"`
	ControllerArg      []string `key:"kube-controller-manager-arg" usage:"flag for kube-controller-manager, as NAME=VALUE"`
	SchedulerArg       []string `key:"kube-scheduler-arg" usage:"flag for kube-scheduler, as NAME=VALUE"`
}

// Dirs are the server's directories.
func (c Config) Dirs() layout.Dirs { return layout.Dirs{Data: c.DataDir, Run: c.RunDir} }

// nodeName finds, or claims, the name of this machine's node, which is this server's name among the servers as well.
func (c Config) nodeName() nodename.Finder {
	return nodename.Finder{Dirs: c.Dirs(), Set: c.NodeName, WithID: c.WithNodeID}
}

// ClaimName settles the name of this machine's node for good. The data directory must be locked by the caller.
func (c *Config) ClaimName() error {
	_, err := c.claimName()
	return err
}

func (c *Config) claimName() (nodename.Name, error) {
	n, err := c.nodeName().Claim()
	if n.Name == "" {
		return n, err
	}
	c.NodeName = n.Name // where it could not be kept, the node says so
	return n, nil
}

// advertisedPort is the port at which others reach the API server.
func (c Config) advertisedPort() int { return int(cmp.Or(c.AdvertisePort, c.HTTPSPort)) }

// Verbosity returns what the components' flags ask of the log.
func (c Config) Verbosity() (v componentflags.Verbosity) {
	for _, args := range [][]string{c.APIServerArg, c.ControllerArg, c.SchedulerArg} {
		more, _, _ := componentflags.TakeVerbosity("", args) // Validate reports the errors
		v = v.Add(more)
	}
	return v
}

// auditNone is the value of audit-log for none.
const auditNone = "none"

// auditFile returns the file of the audit log, empty for none.
func (c Config) auditFile() string {
	switch c.AuditLog {
	case "":
		return filepath.Join(c.Dirs().Server(), "audit", "audit.log")
	case auditNone:
		return ""
	}
	return c.AuditLog
}

// DNS returns the addresses of the DNS Service: cluster-dns, or the tenth address of each Service range.
func (c Config) DNS() []netip.Addr {
	if len(c.ClusterDNS) > 0 {
		return c.ClusterDNS
	}
	var out []netip.Addr
	for _, p := range c.ServiceCIDR {
		a := p.Addr()
		for range 10 {
			a = a.Next()
		}
		out = append(out, a)
	}
	return out
}

// InternalNames are the host names and .domains of the cluster's own, which are reached without a proxy.
func (c Config) InternalNames() []string {
	out := []string{".svc", "." + c.ClusterDomain}
	for e := range strings.SplitSeq(c.DatastoreEndpoint, ",") {
		if u, err := url.Parse(e); err == nil && u.Hostname() != "" {
			out = append(out, u.Hostname())
		}
	}
	return out
}
