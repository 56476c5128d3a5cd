package server

import (
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/datastore/external"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/kubeclient"
	"github.com/umiak-io/umiak/internal/systemports"
	"github.com/umiak-io/umiak/internal/token"
	upgradesapi "github.com/umiak-io/umiak/internal/upgrades"
	"github.com/umiak-io/umiak/manifests"
	"github.com/umiak-io/umiak/server/addons"
	"github.com/umiak-io/umiak/server/admission"
	"github.com/umiak-io/umiak/server/advertise"
	"github.com/umiak-io/umiak/server/cluster"
	"github.com/umiak-io/umiak/server/cluster/sharedfiles"
	"github.com/umiak-io/umiak/server/controlplane"
	"github.com/umiak-io/umiak/server/encryption"
	"github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/pki"
	"github.com/umiak-io/umiak/server/servicelb"
)

// clients makes clients of the server's own API server, with all rights.
func (c Config) clients() kubeclient.Source {
	return kubeclient.Source{Kubeconfig: pki.KubeconfigFile(c.Dirs(), pki.Own)}
}

// bindAddress returns where to listen: "::" takes both families, where there is IPv6 at all.
func bindAddress(cfg Config) string {
	if cfg.BindAddress.IsValid() {
		return cfg.BindAddress.String()
	}
	if nodeip.FamiliesOf(cfg.ServiceCIDR).V6 {
		return "::"
	}
	return "0.0.0.0"
}

// loopbackURL returns where this machine reaches its API server.
func (c Config) loopbackURL() string {
	host := bindAddress(c)
	if ip, err := netip.ParseAddr(host); err != nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "https://" + net.JoinHostPort(host, c.HTTPSPort.String())
}

// ownNode returns the name of the node in this process, "" for none.
func (c Config) ownNode() string {
	if c.DisableAgent {
		return ""
	}
	return c.NodeName
}

// upgradesOff reports whether the settings leave upgrades by the cluster out.
func (c Config) upgradesOff() bool { return c.Disables(upgradesapi.Manifest) }

// dnsEndpoints reports whether the DNS Service has the nodes as endpoints.
func (c Config) dnsEndpoints() bool { return c.DisableKubeProxy && !slices.Contains(c.Disable, "dns") }

// facts returns what every node learns from the cluster.
func (c Config) facts() joinwire.Cluster {
	return joinwire.Cluster{
		ClusterCIDR: c.ClusterCIDR, ServiceCIDR: c.ServiceCIDR, ClusterDNS: c.DNS(), ClusterDomain: c.ClusterDomain,
		FlannelBackend: c.FlannelBackend, FlannelExternalIP: c.FlannelExternalIP,
		NetworkPolicyOff: c.DisableNetworkPolicy, KubeProxyOff: c.DisableKubeProxy,
		NodePorts: c.NodePorts.String(), UpgradesOff: c.upgradesOff(), ExternalIPs: c.ExternalIPs,
	}
}

// advertiseConfig describes the address that this server advertises.
func (c Config) advertiseConfig(addrs *nodeip.Tracker, publish func([]string) error) advertise.Config {
	return advertise.Config{
		Set: c.AdvertiseAddress, Services: c.ServiceCIDR, Addresses: addrs, Port: c.advertisedPort(),
		Fixed: c.DisableAgent,
		Names: func() []string { return c.servingIPs(addrs) }, Publish: publish,
	}
}

// serving describes the API server's certificate.
func (c Config) serving() pki.Serving {
	return pki.Serving{Domain: c.ClusterDomain, SANs: c.TLSSAN, Services: c.ServiceCIDR, Bind: c.BindAddress}
}

// servingIPs returns the addresses in the API server's certificate.
func (c Config) servingIPs(addrs *nodeip.Tracker) []string {
	now, _ := addrs.Now()
	ip, _ := advertise.Choose(c.AdvertiseAddress, c.ServiceCIDR, now.IPs) // "" while there is none
	return c.serving().IPs(slices.Concat([]string{ip}, config.Texts(now.IPs), config.Texts(c.NodeExternalIP))...)
}

// keys makes the authorities, certificates, keys and policies that the components read, where they are missing.
func (c Config) keys(lifetimes pki.Config, addrs *nodeip.Tracker, dc datastore.Config, log *slog.Logger) (*pki.PKI,
	error) {
	d := c.Dirs()
	for _, dir := range []string{d.Server(), d.ServerKubeconfigs()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make folder: %w", err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make folder: %w", err)
		}
	}
	lifetimes.Dir, lifetimes.Log = d.ServerPKI(), log.With("component", "certificates")
	p, err := pki.Ensure(lifetimes)
	if err != nil {
		return nil, err
	}
	if err := encryption.Ensure(d.EncryptionConfig(), c.EncryptionProvider); err != nil {
		return nil, err
	}
	if key, other := encryption.Differs(d.EncryptionConfig(), c.EncryptionProvider); other {
		log.Warn("Secrets are written with another cipher than secrets-encryption-provider: run `umiak secrets-encrypt rotate`",
			"key", key.String(), "setting", c.EncryptionProvider)
	}
	if err := controlplane.EnsureAudit(c.defaultAuditPolicy(), c.auditFile()); err != nil {
		return nil, err
	}
	group, err := c.kubeconfigGroup()
	if err != nil {
		return nil, fmt.Errorf("write-kubeconfig-group: %w", err)
	}
	plane := pki.ControlPlane{
		Dirs: d, URL: c.loopbackURL(), Log: log,
		AdminCopy: pki.AdminCopy{File: c.WriteKubeconfig, Mode: fs.FileMode(c.WriteKubeconfigMode), Group: group,
			Name: c.WriteKubeconfigName},
	}
	serving := p.ServingLeaf(c.serving().Names(), c.servingIPs(addrs))
	leaves := append([]pki.Leaf{serving}, plane.Leaves(p)...)
	if datastore.Clustered(dc) {
		leaves = append(leaves, p.EtcdLeaves(etcd.PeerName)...)
	}
	for _, l := range leaves {
		if err := p.Add(l); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (c Config) defaultAuditPolicy() string {
	return filepath.Join(c.Dirs().Server(), "audit-policy.yaml")
}

// controlPlane returns the settings of the control plane's components that follow from the configuration and files.
func (c Config) controlPlane(p *pki.PKI) controlplane.Settings {
	audit := c.AuditPolicy
	if audit == "" {
		audit = c.defaultAuditPolicy()
	}
	return controlplane.Settings{
		Bind: bindAddress(c), Port: int(c.HTTPSPort), AdvertisePort: int(c.AdvertisePort),
		ClusterCIDR: c.ClusterCIDR, ServiceCIDR: c.ServiceCIDR, NodePorts: c.NodePorts.String(),
		ClusterDomain: c.ClusterDomain,
		OtherIPAM:     c.FlannelBackend == "none", UpgradesOff: c.upgradesOff(),
		ClusterIPRouting: !c.DisableAgent && !c.DisableKubeProxy,
		Services: admission.Limits{
			ExternalIPs: c.ExternalIPs, Inside: slices.Concat(c.ClusterCIDR, c.ServiceCIDR),
			Ports: systemports.Ports{API: int(c.HTTPSPort)},
		},
		Files: controlplane.Files{
			ServerCA: p.CACert(pki.ServerCA), ServerCASigner: p.CASigner(pki.ServerCA),
			ServerCAKey: p.CAKey(pki.ServerCA),
			ClientCA:    p.CACert(pki.ClientCA), ClientCASigner: p.CASigner(pki.ClientCA),
			ClientCAKey:       p.CAKey(pki.ClientCA),
			RequestHeaderCA:   p.CACert(pki.RequestHeaderCA),
			ServiceAccountKey: p.ServiceAccountKey(), ServiceAccountPublicKey: p.ServiceAccountPublicKey(),
			ServingCert: p.CertFile(pki.APIServer), ServingKey: p.KeyFile(pki.APIServer),
			KubeletClientCert: p.CertFile(pki.KubeletClient), KubeletClientKey: p.KeyFile(pki.KubeletClient),
			ProxyClientCert: p.CertFile(pki.FrontProxy), ProxyClientKey: p.KeyFile(pki.FrontProxy),
			Encryption:                  c.Dirs().EncryptionConfig(),
			ControllerManagerKubeconfig: pki.KubeconfigFile(c.Dirs(), pki.ControllerManager),
			SchedulerKubeconfig:         pki.KubeconfigFile(c.Dirs(), pki.Scheduler),
		},
		AuditLog: c.auditFile(), AuditPolicy: audit, NoScheduler: c.DisableScheduler,
		APIServerArgs: c.APIServerArg, ControllerManagerArgs: c.ControllerArg, SchedulerArgs: c.SchedulerArg,
	}
}

// addons returns the part that applies the packaged manifests and the user's.
func (c Config) addons(cl *cluster.Cluster, log *slog.Logger) (*addons.Part, error) {
	vars, err := manifests.Vars(manifests.Cluster{Domain: c.ClusterDomain, DNS: c.DNS(),
		OtherProxy: c.DisableKubeProxy})
	if err != nil {
		return nil, err
	}
	return addons.NewPart(addons.Config{
		Dir: c.Dirs().Manifests(), Embedded: manifests.FS, Vars: vars, Disable: config.Texts(c.Disable), Server: c.NodeName,
		Node: !c.DisableAgent, Alone: !cl.Several(), Left: cl.HasLeft, Log: log,
	}, c.clients().ConfigMaker("umiak-manifests")), nil
}

// loadBalancer returns the controller that gives Services of type LoadBalancer their addresses.
func (c Config) loadBalancer(nodes *joinapi.API, log *slog.Logger) *servicelb.Controller {
	return servicelb.New(servicelb.Config{
		Client: c.clients().Maker("umiak-load-balancer"),
		Planner: servicelb.Planner{
			Pool: c.LoadBalancers, Reserved: servicelb.ReservedPorts(c.NodePorts, int(c.HTTPSPort)),
			Disputed: nodes.Disputed, Supported: nodes.Supported,
		},
		Changed: nodes.AddressesChanged, Disabled: c.Disables(servicelb.Name), Log: log,
	})
}

// firstTokens returns the two tokens that the cluster has from its first start on.
func (c Config) firstTokens() []joinapi.LongLived {
	d := c.Dirs()
	srv, _ := token.FromSettings(c.Token, c.TokenFile) // Validate has read the files
	if c.Server != "" {
		srv = "" // it is the one with which this server joins
	}
	agt, _ := token.FromSettings(c.AgentToken, c.AgentTokenFile)
	return []joinapi.LongLived{
		{ID: joinapi.ServerID, Kind: token.Server, File: d.ServerToken(), Given: srv, Joined: sharedfiles.Joined(d),
			Server: c.NodeName},
		{ID: joinapi.AgentID, Kind: token.Agent, File: d.AgentToken(), Given: agt, Server: c.NodeName},
	}
}

// withMetrics registers the datastore's metrics with those of the components.
func withMetrics(c datastore.Config) datastore.Config {
	c.Registerer = legacyregistry.Registerer()
	return c
}

// datastoreConfig describes the datastore of a server that advertises an address. Metrics are not registered.
func (c Config) datastoreConfig(advertise string, log *slog.Logger) datastore.Config {
	d := c.Dirs()
	return datastore.Config{
		Dir: d.DB(), Socket: d.DatastoreSocket(), VolatileSocket: d.VolatileSocket(),
		Endpoint: c.DatastoreEndpoint, TLS: external.TLS{CAFile: c.DatastoreCA, CertFile: c.DatastoreCert,
			KeyFile: c.DatastoreKey},
		ClusterInit: c.ClusterInit, Etcd: c.etcdConfig(advertise), Log: log.With("component", "datastore"),
	}
}

// etcdConfig describes this server's member of an etcd cluster. Members listen where the API server listens.
func (c Config) etcdConfig(advertise string) etcd.Config {
	file := func(name string) string { return filepath.Join(c.Dirs().ServerPKI(), name) }
	port := strconv.Itoa(etcd.PeerPort)
	return etcd.Config{
		Metrics: c.etcdMetrics(), Args: c.EtcdArg,
		Name: c.NodeName, Peer: net.JoinHostPort(advertise, port), Listen: net.JoinHostPort(bindAddress(c), port),
		Cluster: "umiak", Reset: c.ClusterReset,
		TLS: etcd.TLS{CA: file(string(pki.EtcdCA) + ".crt"),
			ServerCert: file(pki.EtcdPeer + ".crt"), ServerKey: file(pki.EtcdPeer + ".key"),
			ClientCert: file(pki.EtcdPeerClient + ".crt"), ClientKey: file(pki.EtcdPeerClient + ".key")},
	}
}

// remarkEtcd logs that settings of etcd have no effect where another datastore holds the state.
func (c Config) remarkEtcd(dc datastore.Config, log *slog.Logger) {
	if datastore.Clustered(dc) {
		return
	}
	for key, set := range map[string]bool{"etcd-expose-metrics": c.EtcdMetrics, "etcd-arg": len(c.EtcdArg) > 0} {
		if set {
			log.Warn(key + " has no effect: the state is not in an etcd of this process, see cluster-init")
		}
	}
}

// etcdMetrics returns where etcd's metrics are served: where the API server listens, and on this machine.
func (c Config) etcdMetrics() (out []string) {
	if !c.EtcdMetrics {
		return nil
	}
	port := strconv.Itoa(etcd.MetricsPort)
	out = append(out, net.JoinHostPort(bindAddress(c), port))
	if a := c.BindAddress; a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() {
		out = append(out, net.JoinHostPort("127.0.0.1", port))
	}
	return out
}

// etcdMetricsPorts returns the port of etcdMetrics if there is an etcd in this process.
func (c Config) etcdMetricsPorts(dc datastore.Config) []systemports.Held {
	if !c.EtcdMetrics || !datastore.Clustered(dc) {
		return nil
	}
	return []systemports.Held{{Protocol: corev1.ProtocolTCP, Port: etcd.MetricsPort, Holder: "etcd's metrics"}}
}

// joinToken returns the token that is set, zero if none is.
func (c Config) joinToken() (token.Token, error) {
	text, err := token.FromSettings(c.Token, c.TokenFile)
	if err != nil {
		return token.Token{}, fmt.Errorf("token-file: %w", err)
	}
	if text == "" {
		return token.Token{}, nil
	}
	t, err := token.Parse(text)
	if err != nil {
		return token.Token{}, fmt.Errorf("token: %w", err)
	}
	return t, nil
}

// shared returns the settings that all servers must have alike: what nodes get, what several servers write into the
// same objects, and what is deployed.
func (c Config) shared() []joinwire.Setting {
	list := func(l []string) string { return strings.Join(l, ",") }
	set := func(l []string) string {
		l = slices.Clone(l)
		slices.Sort(l)
		return list(slices.Compact(l))
	}
	out := []joinwire.Setting{
		{Key: "cluster-cidr", Value: list(config.Texts(c.ClusterCIDR))},
		{Key: "service-cidr", Value: list(config.Texts(c.ServiceCIDR))},
		{Key: "service-node-port-range", Value: c.NodePorts.String()},
		{Key: "cluster-dns", Value: list(config.Texts(c.DNS()))},
		{Key: "cluster-domain", Value: c.ClusterDomain},
		{Key: "flannel-backend", Value: c.FlannelBackend},
		{Key: "load-balancer-pool", Value: set(config.Texts(c.LoadBalancers))},
		{Key: "disable", Value: set(config.Texts(c.Disable))},
		{Key: "https-listen-port", Value: c.HTTPSPort.String()},
	}
	// Older releases do not have these settings: each is listed only where it is set.
	if len(c.ExternalIPs) > 0 {
		out = append(out, joinwire.Setting{Key: "service-external-ips", Value: set(config.Texts(c.ExternalIPs))})
	}
	if c.AdvertisePort != 0 { // the same; the endpoints of the Service kubernetes have one port
		out = append(out, joinwire.Setting{Key: "advertise-port", Value: c.AdvertisePort.String()})
	}
	if c.DisableScheduler { // the same; whichever server leads would have one or none
		out = append(out, joinwire.Setting{Key: "disable-scheduler", Value: "true"})
	}
	for _, s := range []struct {
		key string
		set bool
	}{{"disable-network-policy", c.DisableNetworkPolicy}, {"disable-kube-proxy", c.DisableKubeProxy},
		{"flannel-external-ip", c.FlannelExternalIP}} {
		if s.set {
			out = append(out, joinwire.Setting{Key: s.key, Value: "true"})
		}
	}
	return out
}
