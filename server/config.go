package server

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/umiak-io/umiak/datastore/external"
	"github.com/umiak-io/umiak/internal/joinclient"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/nodename"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/server/backup"
	"github.com/umiak-io/umiak/server/cluster/sharedfiles"
	"github.com/umiak-io/umiak/server/controlplane"
	"github.com/umiak-io/umiak/server/servicelb"
)

// Config is what a user may set on a server.
type Config struct {
	DataDir string `key:"data-dir" default:"/var/lib/umiak" usage:"where everything that survives a reboot is kept"`
	RunDir  string `key:"run-dir" default:"/run/umiak" usage:"sockets and other state of this boot"`

	Server         string `key:"server" usage:"URL of a server to join, as https://HOST:6443"`
	Token          string `key:"token" secret:"true" usage:"token or password with which machines join (default: made at the first start, in data-dir/server/token)"`
	TokenFile      string `key:"token-file" secret:"file" usage:"file that holds the token"`
	AgentToken     string `key:"agent-token" secret:"true" usage:"token or password with which only agents join (default: made at the first start, in data-dir/server/agent-token)"`
	AgentTokenFile string `key:"agent-token-file" secret:"file" usage:"file that holds agent-token"`

	NodeName string `key:"node-name" usage:"name of the node, which stays when it has joined (default: the host name)"`

	BindAddress string `key:"bind-address" usage:"address to listen on (default: all)"`
	// KubeletPort and ImageSharing are the node's.
	KubeletPort      int      `key:"kubelet-port" default:"10250" usage:"port of the kubelet's authenticated API"`
	ImageSharing     bool     `key:"image-sharing" default:"true" usage:"give images to the cluster's other nodes, at port 5001, and take them from there"`
	HTTPSPort        int      `key:"https-listen-port" default:"6443" usage:"port of the API server, the only one that other machines need"`
	AdvertiseAddress string   `key:"advertise-address" usage:"address at which the API server is reached (default: node-ip)"`
	NodeIP           []string `key:"node-ip" usage:"addresses to advertise for the node, one a family (default: that of the default route's interface)"`
	NodeExternalIP   []string `key:"node-external-ip" usage:"addresses by which others reach the node through a router"`
	TLSSAN           []string `key:"tls-san" usage:"more names and addresses for the server's certificate"`

	ClusterCIDR    []string `key:"cluster-cidr" default:"10.42.0.0/16" usage:"address range of pods, one a family"`
	ServiceCIDR    []string `key:"service-cidr" default:"10.43.0.0/16" usage:"address range of Services, one a family"`
	NodePorts      string   `key:"service-node-port-range" default:"30000-32767" usage:"ports for Services of type NodePort"`
	ClusterDNS     []string `key:"cluster-dns" usage:"address of the DNS Service (default: the tenth of service-cidr)"`
	ClusterDomain  string   `key:"cluster-domain" default:"cluster.local" usage:"domain of the cluster's names"`
	LoadBalancers  []string `key:"load-balancer-pool" usage:"addresses for Services of type LoadBalancer, as ranges or prefixes that your network sends to the nodes (default: the nodes' addresses)"`
	ExternalIPs    []string `key:"service-external-ips" usage:"address ranges of which spec.externalIPs of Services may be (default: none; load balancers need none)"`
	FlannelBackend string   `key:"flannel-backend" default:"vxlan" usage:"vxlan, host-gw, wireguard-native, or none to bring another network"`

	WriteKubeconfig     string   `key:"write-kubeconfig" usage:"also write the administrator's kubeconfig here"`
	WriteKubeconfigMode string   `key:"write-kubeconfig-mode" default:"0600" usage:"file mode of write-kubeconfig"`
	Disable             []string `key:"disable" usage:"packaged component or manifest to leave out"`
	DisableAgent        bool     `key:"disable-agent" usage:"run no workloads on this machine"`

	DatastoreEndpoint string `key:"datastore-endpoint" secret:"true" usage:"where the cluster's state is kept: postgres://, mysql://, nats://, or etcd's https:// addresses with commas between (default: in data-dir)"`
	DatastoreCA       string `key:"datastore-cafile" usage:"CA file that datastore-endpoint's certificate is checked with"`
	DatastoreCert     string `key:"datastore-certfile" usage:"client certificate file for datastore-endpoint"`
	DatastoreKey      string `key:"datastore-keyfile" usage:"client key file for datastore-endpoint"`
	ClusterInit       bool   `key:"cluster-init" usage:"keep the state in etcd in this process, so that more servers can join; what SQLite has moves there"`
	ClusterReset      bool   `key:"cluster-reset" usage:"make a cluster of this server alone, out of the state that it has, when most servers are lost; once"`

	Snapshots backup.Config

	AuditLog      string   `key:"audit-log" usage:"file for the audit log, or none (default: server/audit/audit.log in data-dir)"`
	AuditPolicy   string   `key:"audit-policy" usage:"audit policy file (default: metadata of every change)"`
	APIServerArg  []string `key:"kube-apiserver-arg" usage:"flag for kube-apiserver, as NAME=VALUE"`
	ControllerArg []string `key:"kube-controller-manager-arg" usage:"flag for kube-controller-manager, as NAME=VALUE"`
	SchedulerArg  []string `key:"kube-scheduler-arg" usage:"flag for kube-scheduler, as NAME=VALUE"`
}

// Dirs are the server's directories.
func (c Config) Dirs() layout.Dirs { return layout.Dirs{Data: c.DataDir, Run: c.RunDir} }

// nodeName finds, or claims, the name of this machine's node, which is this server's name among the servers as well.
func (c Config) nodeName() nodename.Finder { return nodename.Finder{Dirs: c.Dirs(), Set: c.NodeName} }

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

// auditNone is the value of audit-log for none.
const auditNone = "none"

// auditFile is where the API server notes who has changed what; empty for nowhere.
func (c Config) auditFile() string {
	switch c.AuditLog {
	case "":
		return filepath.Join(c.Dirs().Server(), "audit", "audit.log")
	case auditNone:
		return ""
	}
	return c.AuditLog
}

// DNS are the addresses of the DNS Service: what was set or the tenth of each Service range.
func (c Config) DNS() []string {
	if len(c.ClusterDNS) > 0 {
		return c.ClusterDNS
	}
	var out []string
	for _, s := range c.ServiceCIDR {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			continue // Validate has said so
		}
		a := p.Masked().Addr()
		for range 10 {
			a = a.Next()
		}
		out = append(out, a.String())
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

// KubeconfigMode is write-kubeconfig-mode as a number.
func (c Config) KubeconfigMode() uint32 {
	m, _ := strconv.ParseUint(c.WriteKubeconfigMode, 8, 12)
	return uint32(m)
}

// Validate returns all that is wrong, each with its key and the remedy. It reads and decodes the files that settings name.
func (c Config) Validate() error {
	_, err := c.Snapshots.Passphrase() // has its key
	return errors.Join(c.ValidateStart(), err)
}

// ValidateStart is Validate but for files without which a server starts all the same: the part that needs one waits for it,
// as where its disk is not mounted yet.
func (c Config) ValidateStart() error { return errors.Join(c.ValidateValues(), c.checkFiles()) }

// ValidateValues is Validate for settings of another machine, whose files are not here.
func (c Config) ValidateValues() error {
	var errs []error
	fail := func(key, format string, a ...any) { errs = append(errs, fmt.Errorf(key+": "+format, a...)) }
	for key, list := range map[string][]string{"cluster-cidr": c.ClusterCIDR, "service-cidr": c.ServiceCIDR} {
		var families []bool
		for _, s := range list {
			p, err := netip.ParsePrefix(s)
			switch {
			case err != nil:
				fail(key, "%q is not an address range such as 10.42.0.0/16", s)
			case p != p.Masked():
				fail(key, "%q has bits set behind the prefix, %s is meant?", s, p.Masked())
			default:
				families = append(families, p.Addr().Is4())
			}
		}
		if len(list) == 0 || len(list) > 2 || len(families) == 2 && families[0] == families[1] {
			fail(key, "one range, or one IPv4 and one IPv6 range")
		}
	}
	if len(c.ClusterCIDR) != len(c.ServiceCIDR) {
		fail("service-cidr", "must have the address families of cluster-cidr")
	}
	for _, a := range c.ClusterCIDR {
		for _, b := range c.ServiceCIDR {
			pa, errA := netip.ParsePrefix(a)
			pb, errB := netip.ParsePrefix(b)
			if errA == nil && errB == nil && pa.Overlaps(pb) {
				fail("service-cidr", "%s overlaps cluster-cidr %s", b, a)
			}
		}
	}
	for key, list := range map[string][]string{"node-ip": c.NodeIP, "cluster-dns": c.ClusterDNS, "bind-address": one(c.BindAddress), "advertise-address": one(c.AdvertiseAddress)} {
		for _, a := range list {
			if _, err := netip.ParseAddr(a); err != nil {
				fail(key, "%q is not an IP address", a)
			}
		}
	}
	if _, err := servicelb.ParsePool(c.LoadBalancers); err != nil {
		fail("load-balancer-pool", "%w", err)
	}
	for _, s := range c.ExternalIPs {
		if p, err := netip.ParsePrefix(s); err != nil || p != p.Masked() {
			fail("service-external-ips", "%q is not an address range such as 203.0.113.0/24", s)
		}
	}
	if c.HTTPSPort < 1 || c.HTTPSPort > 65535 {
		fail("https-listen-port", "%d is not a port, 1 to 65535", c.HTTPSPort)
	}
	if m, err := strconv.ParseUint(c.WriteKubeconfigMode, 8, 12); err != nil || m&0o600 != 0o600 {
		fail("write-kubeconfig-mode", "%q is not a file mode such as 0600", c.WriteKubeconfigMode)
	}
	errs = append(errs, c.validateDatastore()...)
	if err := c.Snapshots.Validate(); err != nil {
		errs = append(errs, err)
	}
	if e := validation.IsDNS1123Subdomain(c.ClusterDomain); len(e) > 0 {
		fail("cluster-domain", "%q: %s", c.ClusterDomain, strings.Join(e, ", "))
	}
	switch c.FlannelBackend {
	case "vxlan", "host-gw", "wireguard-native", "none":
	default:
		fail("flannel-backend", "%q is not one of vxlan, host-gw, wireguard-native, none", c.FlannelBackend)
	}
	if _, err := utilnet.ParsePortRange(c.NodePorts); err != nil {
		fail("service-node-port-range", "%q is not a range of ports such as 30000-32767", c.NodePorts)
	}
	errs = append(errs, c.checkRanges(), c.checkNames(), c.checkPorts())
	for key, pair := range map[string][2]string{"token": {c.Token, c.TokenFile}, "agent-token": {c.AgentToken, c.AgentTokenFile}} {
		if pair[0] != "" && pair[1] != "" && key != "token" { // the agent's settings say so of token
			fail(key+"-file", "%s is set as well; set one of them", key)
		}
		if t, err := token.FromSettings(pair[0], pair[1]); err != nil {
			fail(key+"-file", "%w", err)
		} else if t == "" && pair[1] != "" {
			fail(key+"-file", "%s is empty", pair[1])
		} else if t != "" {
			switch tok, err := token.Parse(t); {
			case err != nil:
				fail(key, "%w", err)
			case tok.Weak() && !sharedfiles.Placed(c.Dirs()) && (key != "token" || c.Server == ""): // a server that runs already goes on, and says so in its status
				fail(key, "it has %d characters, and a password needs %d at least, since it can be guessed: take a longer one, leave it out so that a token is made, or, where there is a server already, set the line in its data-dir/server/token", len(tok.Secret), token.MinPassword)
			}
		}
	}
	if _, err := c.nodeName().Find(); err != nil {
		errs = append(errs, err)
	}
	if errors.Join(errs...) == nil { // the components' own flags are made of what is checked above
		errs = append(errs, c.checkArgs())
	}
	return errors.Join(errs...)
}

// checkArgs returns what is wrong with the flags of the components.
func (c Config) checkArgs() error {
	if len(c.APIServerArg)+len(c.ControllerArg)+len(c.SchedulerArg) == 0 {
		return nil
	}
	return controlplane.CheckArgs(controlplane.Settings{
		Bind: bindAddress(c), Port: c.HTTPSPort, Advertise: func() string { return "192.0.2.1" }, // the address is not known yet, RFC 5737
		ClusterCIDR: c.ClusterCIDR, ServiceCIDR: c.ServiceCIDR, NodePorts: c.NodePorts, ClusterDomain: c.ClusterDomain,
		APIServerArgs: c.APIServerArg, ControllerManagerArgs: c.ControllerArg, SchedulerArgs: c.SchedulerArg,
	})
}

func (c Config) validateDatastore() (errs []error) {
	fail := func(key, format string, a ...any) { errs = append(errs, fmt.Errorf(key+": "+format, a...)) }
	if c.DatastoreEndpoint != "" {
		if _, err := external.Kind(c.DatastoreEndpoint); err != nil {
			fail("datastore-endpoint", "%w", err)
		}
		if c.ClusterInit || c.ClusterReset {
			fail("cluster-init", "is for etcd in this process; leave it or datastore-endpoint out")
		}
	} else if c.DatastoreCA != "" || c.DatastoreCert != "" || c.DatastoreKey != "" {
		fail("datastore-cafile", "needs datastore-endpoint")
	}
	if c.Server != "" {
		if _, err := joinclient.Address(c.Server); err != nil {
			fail("server", "%w", err)
		}
		if c.ClusterInit {
			fail("cluster-init", "makes a new cluster, and server names one to join; leave one of them out")
		}
	}
	if (c.DatastoreCert == "") != (c.DatastoreKey == "") {
		fail("datastore-certfile", "and datastore-keyfile belong together")
	}
	return errs
}

func one(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}
