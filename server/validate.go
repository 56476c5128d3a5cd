package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/klog/v2"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/datastore/external"
	"github.com/umiak-io/umiak/internal/componentflags"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/joinclient"
	"github.com/umiak-io/umiak/internal/systemports"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/internal/yamlfile"
	"github.com/umiak-io/umiak/server/cluster/sharedfiles"
	"github.com/umiak-io/umiak/server/controlplane"
	"github.com/umiak-io/umiak/server/pki"
)

// Validate returns all that is wrong, each with its key and the remedy. It reads and decodes the files that settings
// name.
func (c Config) Validate() error {
	_, err := c.Snapshots.Passphrase() // has its key
	return errors.Join(c.ValidateStart(), err)
}

// ValidateStart is Validate but for files without which a server starts all the same: the part that needs one waits
// for it, as where its disk is not mounted yet.
func (c Config) ValidateStart() error { return errors.Join(c.ValidateValues(), c.checkFiles()) }

// ValidateValues is Validate for settings of another machine, whose files are not here.
func (c Config) ValidateValues() error {
	var m config.Mistakes
	c.checkRanges(&m)
	c.checkAddresses(&m)
	if e := validation.IsDNS1123Subdomain(c.ClusterDomain); len(e) > 0 {
		m.Add("cluster-domain", "%q: %s", c.ClusterDomain, strings.Join(e, ", "))
	}
	c.checkDatastore(&m)
	m.Join(c.Snapshots.Validate())
	c.checkKubeconfig(&m)
	c.checkPorts(&m)
	// What is wrong with both of token and token-file, the agent's settings report.
	if c.AgentToken != "" && c.AgentTokenFile != "" {
		m.Add("agent-token-file", "agent-token is set as well; set one of them")
	}
	c.checkToken(&m, "token", c.Token, c.TokenFile)
	c.checkToken(&m, "agent-token", c.AgentToken, c.AgentTokenFile)
	if _, err := c.nodeName().Find(); err != nil {
		m.Join(err)
	}
	if m.Err() == nil { // the components' own flags are made of what is checked above
		m.Join(c.checkArgs())
	}
	return m.Err()
}

// checkToken adds what is wrong with a token or password, or with the file that holds it.
func (c Config) checkToken(m *config.Mistakes, key, text, file string) {
	text, err := token.FromSettings(text, file)
	switch {
	case err != nil:
		m.Add(key+"-file", "%w", err)
		return
	case text == "" && file != "":
		m.Add(key+"-file", "%s is empty", file)
		return
	case text == "":
		return
	}
	tok, err := token.Parse(text)
	if err != nil {
		m.Add(key, "%w", err)
		return
	}
	// A server that was set up with a short password goes on, and its status names it.
	if tok.Weak() && !sharedfiles.Placed(c.Dirs()) && (key != "token" || c.Server == "") {
		m.Add(key, "it has %d characters, and a password needs %d at least, since it can be guessed: take a longer one, "+
			"leave it out so that a token is made, or, where there is a server already, set the line in its data-dir/server/token",
			len(tok.Secret), token.MinPassword)
	}
}

// checkArgs returns what is wrong with the flags of the components.
func (c Config) checkArgs() error {
	err := etcd.CheckArgs(c.EtcdArg)
	if err != nil || len(c.APIServerArg)+len(c.ControllerArg)+len(c.SchedulerArg) == 0 {
		return err
	}
	return controlplane.CheckArgs(controlplane.Settings{
		// the address is not known yet, RFC 5737
		Bind: bindAddress(c), Port: int(c.HTTPSPort), Advertise: func() string { return "192.0.2.1" },
		ClusterCIDR: c.ClusterCIDR, ServiceCIDR: c.ServiceCIDR, NodePorts: c.NodePorts.String(),
		ClusterDomain: c.ClusterDomain,
		APIServerArgs: c.APIServerArg, ControllerManagerArgs: c.ControllerArg, SchedulerArgs: c.SchedulerArg,
	})
}

// checkDatastore adds what is wrong with the settings of the datastore and with those that choose one.
func (c Config) checkDatastore(m *config.Mistakes) {
	if c.DatastoreEndpoint != "" {
		if _, err := external.Kind(c.DatastoreEndpoint); err != nil {
			m.Add("datastore-endpoint", "%w", err)
		}
		if c.ClusterInit {
			m.Add("cluster-init", "is for etcd in this process; leave it or datastore-endpoint out")
		}
		if c.ClusterReset {
			m.Add("cluster-reset", "is for etcd in this process; leave it or datastore-endpoint out")
		}
	} else if c.DatastoreCA != "" || c.DatastoreCert != "" || c.DatastoreKey != "" {
		m.Add("datastore-cafile", "needs datastore-endpoint")
	}
	if c.Server != "" {
		if _, err := joinclient.Address(c.Server); err != nil {
			m.Add("server", "%w", err)
		}
		if c.ClusterInit {
			m.Add("cluster-init", "makes a new cluster, and server names one to join; leave one of them out")
		}
	}
	if c.ResetRestorePath != "" && !c.ClusterReset {
		m.Add("cluster-reset-restore-path", "needs cluster-reset: true; to restore a snapshot without it, stop the server "+
			"and run `umiak snapshot restore %s`", c.ResetRestorePath)
	}
	if (c.DatastoreCert == "") != (c.DatastoreKey == "") {
		m.Add("datastore-certfile", "and datastore-keyfile belong together")
	}
}

// maxNodeBits bounds the number of nodes' ranges in upstream's allocator, as bits: node-cidr-mask-size less the prefix
// of cluster-cidr.
const maxNodeBits = 16

// checkRanges adds what is wrong with the ranges of pods and Services.
func (c Config) checkRanges(m *config.Mistakes) {
	for _, l := range []struct {
		key  string
		list []netip.Prefix
	}{{"cluster-cidr", c.ClusterCIDR}, {"service-cidr", c.ServiceCIDR}} {
		if n := len(l.list); n == 0 || n > 2 || n == 2 && l.list[0].Addr().Is4() == l.list[1].Addr().Is4() {
			m.Add(l.key, "one range, or one IPv4 and one IPv6 range")
		}
	}
	if nodeip.FamiliesOf(c.ClusterCIDR) != nodeip.FamiliesOf(c.ServiceCIDR) {
		m.AddWith("service-cidr", []string{"cluster-cidr"}, "must have the address families of cluster-cidr")
	}
	for _, a := range c.ClusterCIDR {
		for _, b := range c.ServiceCIDR {
			if a.Overlaps(b) {
				m.AddWith("service-cidr", []string{"cluster-cidr"}, "%s overlaps cluster-cidr %s", b, a)
			}
		}
	}
	for _, p := range c.ClusterCIDR {
		switch mask := c.nodeMask(p.Addr().Is4()); {
		case mask == 0: // nothing is allocated, or the mask is not a number, which checkArgs reports
		case p.Bits() > mask:
			m.Add("cluster-cidr", "%s has no room for a node's range, which is a /%d: take a /%d or a larger range, "+
				"or set kube-controller-manager-arg: node-cidr-mask-size", p, mask, mask-8)
		case mask-p.Bits() > maxNodeBits:
			m.Add("cluster-cidr", "%s is too large for nodes' ranges of /%d: Kubernetes takes a /%d at most", p, mask,
				mask-maxNodeBits)
		}
	}
}

// checkAddresses adds what is wrong with addresses of the cluster and of this server.
func (c Config) checkAddresses(m *config.Mistakes) {
	if c.FlannelExternalIP && (c.FlannelBackend == "host-gw" || c.FlannelBackend == "none") {
		m.AddWith("flannel-external-ip", []string{"flannel-backend"},
			"flannel-backend %s has no tunnels to external addresses: take vxlan or wireguard-native", c.FlannelBackend)
	}
	services := strings.Join(config.Texts(c.ServiceCIDR), ",")
	for _, a := range c.DNS() {
		in := slices.IndexFunc(c.ServiceCIDR, func(p netip.Prefix) bool { return p.Contains(a) })
		switch {
		case slices.Contains(c.Disable, dnsComponent): // the user's own, wherever it is
		case in < 0 && len(c.ClusterDNS) > 0:
			m.AddWith("cluster-dns", []string{"service-cidr"},
				"%s is outside of service-cidr %s; it is the address of a Service", a, services)
		case in < 0:
			m.Add("service-cidr", "%s is too small: the address of the DNS Service, %s, is outside; take a larger range, or set cluster-dns", services, a)
		case a == c.ServiceCIDR[in].Addr() || a == c.ServiceCIDR[in].Addr().Next():
			m.AddWith("cluster-dns", []string{"service-cidr"},
				"%s is taken: the first address of service-cidr is that of the Service kubernetes", a)
		}
	}
	if a := c.AdvertiseAddress; a.IsValid() && (a.IsUnspecified() ||
		a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast()) {
		m.Add("advertise-address", "%s is no address at which other machines reach this one", a)
	}
	if err := c.LoadBalancers.Check(); err != nil {
		m.Add("load-balancer-pool", "%w", err)
	}
}

// nodeMask is the prefix length of a node's range of pods; 0 where none is allocated.
func (c Config) nodeMask(v4 bool) int {
	mask, family := 64, "node-cidr-mask-size-ipv6"
	if v4 {
		mask, family = 24, "node-cidr-mask-size-ipv4"
	}
	for _, arg := range c.ControllerArg {
		switch name, value, _ := componentflags.Split(arg); {
		case name == "allocate-node-cidrs" && value == "false":
			return 0
		case name == family, name == "node-cidr-mask-size" && len(c.ClusterCIDR) == 1:
			n, err := strconv.Atoi(value)
			if err != nil {
				return 0
			}
			if n > 0 { // 0 is upstream's word for its default
				mask = n
			}
		}
	}
	return mask
}

// checkKubeconfig adds what is wrong with the copy of the administrator's kubeconfig.
func (c Config) checkKubeconfig(m *config.Mistakes) {
	if n := c.WriteKubeconfigName; n == "" || n != strings.TrimSpace(n) || strings.ContainsFunc(n, unicode.IsControl) {
		m.Add("write-kubeconfig-name", "%q is not a name for a context", n)
	}
}

// kubeconfigGroup returns the number of write-kubeconfig-group, or pki.NoGroup if it is not set.
func (c Config) kubeconfigGroup() (int, error) {
	text := c.WriteKubeconfigGroup
	if text == "" {
		return pki.NoGroup, nil
	}
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return int(n), nil
	}
	g, err := user.LookupGroup(text)
	if err != nil {
		return 0, fmt.Errorf("%q is neither the number nor the name of a group on this machine", text)
	}
	return strconv.Atoi(g.Gid)
}

// checkPorts adds an error where the API server would listen at the port of another part.
func (c Config) checkPorts(m *config.Mistakes) {
	if c.DisableAgent {
		return
	}
	node := systemports.Node{Server: true, API: int(c.HTTPSPort), Kubelet: int(c.KubeletPort), Sharing: c.ImageSharing}
	for _, h := range node.Held() {
		if h.Port == int(c.HTTPSPort) && h.Holder != "the API server" {
			m.AddWith("https-listen-port", []string{"kubelet-port"}, "%s is the port of %s as well", c.HTTPSPort,
				h.Holder)
			return
		}
	}
	// With disable-kube-proxy the node has the API at 127.0.0.1 as well, see ownnode.Node.LocalServer.
	bind := c.BindAddress
	loopback := !bind.IsValid() || bind.IsUnspecified() || bind.IsLoopback()
	if c.DisableKubeProxy && loopback && c.HTTPSPort == c.BalancerPort {
		m.AddWith("https-listen-port", []string{"lb-server-port", "disable-kube-proxy", "bind-address"},
			"%s is lb-server-port as well, at which a server listens with disable-kube-proxy; set another for one of them",
			c.HTTPSPort)
	}
}

// checkFiles returns what is wrong with the files that settings name.
func (c Config) checkFiles() error {
	var m config.Mistakes
	fail := func(key string, err error) {
		if err != nil {
			m.Add(key, "%w", err)
		}
	}
	if c.AuditPolicy != "" {
		fail("audit-policy", controlplane.CheckAuditPolicy(c.AuditPolicy))
	}
	_, err := c.kubeconfigGroup()
	fail("write-kubeconfig-group", err)
	if c.DatastoreCA != "" {
		pem, err := yamlfile.Read(c.DatastoreCA)
		if err == nil && !x509.NewCertPool().AppendCertsFromPEM(pem) {
			err = fmt.Errorf("%s holds no certificate in PEM", c.DatastoreCA)
		}
		fail("datastore-cafile", err)
	}
	if c.DatastoreCert != "" && c.DatastoreKey != "" {
		cert, errC := yamlfile.Read(c.DatastoreCert)
		key, errK := yamlfile.Read(c.DatastoreKey)
		fail("datastore-certfile", errC)
		fail("datastore-keyfile", errK)
		if errC == nil && errK == nil {
			_, err := tls.X509KeyPair(cert, key)
			fail("datastore-certfile", err)
		}
	}
	for _, l := range []struct {
		key  string
		args []string
	}{{"kube-apiserver-arg", c.APIServerArg}, {"kube-controller-manager-arg", c.ControllerArg},
		{"kube-scheduler-arg", c.SchedulerArg}} {
		for _, arg := range l.args {
			name, value, _ := componentflags.Split(arg)
			fail(l.key+": "+name, checkArgFile(l.key, name, value))
		}
	}
	return m.Err()
}

// checkArgFile returns why a component's flag cannot be used if it names a file to read.
func checkArgFile(key, name, value string) error {
	switch {
	case value == "":
		return nil
	case name == "audit-policy-file":
		return controlplane.CheckAuditPolicy(value)
	case name == "config" && key == "kube-scheduler-arg":
		if _, err := yamlfile.Read(value); err != nil {
			return err
		}
		if _, err := scheduler.LoadConfigFromFile(klog.Background(), value); err != nil {
			return fmt.Errorf("%s: %w", value, err)
		}
	case strings.HasSuffix(name, "-file"), strings.HasSuffix(name, "-config") && strings.HasPrefix(value, "/"),
		name == "kubeconfig":
		_, err := os.Stat(value)
		return err
	}
	return nil
}
