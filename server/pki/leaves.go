package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/umiak-io/umiak/internal/certfiles"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/nodecerts"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// The names of the control plane's certificates, which are those of their files.
const (
	APIServer         = "apiserver"          // serving
	KubeletClient     = "kubelet-client"     // the API server, towards kubelets
	FrontProxy        = "front-proxy"        // the API server, towards aggregated API servers
	ControllerManager = "controller-manager" // has a kubeconfig
	Scheduler         = "scheduler"          // has a kubeconfig
	Own               = "server"             // this process for its own work; has a kubeconfig
	Admin             = "admin"              // the administrator; has a kubeconfig
	EtcdPeer          = "etcd-peer"          // a member of an etcd cluster, serving the others
	EtcdPeerClient    = "etcd-peer-client"   // the same, towards the others
)

// CertFile returns the file of a certificate of the control plane.
func (p *PKI) CertFile(name string) string { return p.File(name + ".crt") }

// KeyFile returns the file of the key of a certificate of the control plane.
func (p *PKI) KeyFile(name string) string { return p.File(name + ".key") }

// KubeconfigFile returns the path of the kubeconfig of ControllerManager, Scheduler or Own.
func KubeconfigFile(d layout.Dirs, name string) string {
	return filepath.Join(d.ServerKubeconfigs(), name+".kubeconfig")
}

// ControlPlane describes the certificates of one server's control plane.
type ControlPlane struct {
	Dirs layout.Dirs
	// URL is where this machine reaches its API server.
	URL string
	// AdminCopy is a second file with the administrator's kubeconfig.
	AdminCopy AdminCopy
	Log       *slog.Logger
}

// AdminCopy describes a copy of the administrator's kubeconfig for people and programs of this machine.
type AdminCopy struct {
	File  string // "" for none
	Mode  fs.FileMode
	Group int    // number of the file's group, or NoGroup to leave it alone
	Name  string // of cluster, user and context
}

// NoGroup is an AdminCopy.Group that leaves the file's group alone; see chown(2).
const NoGroup = -1

// Leaves returns the client certificates of the control plane, which write the kubeconfigs as well.
func (c ControlPlane) Leaves(p *PKI) []Leaf {
	client := func(name string, ca CA, user string, groups ...string) Leaf {
		return Leaf{Name: name, CA: ca, CertFile: p.CertFile(name), KeyFile: p.KeyFile(name), CommonName: user,
			Organization: groups, Steady: true}
	}
	component := func(name, user string, groups ...string) Leaf {
		l := client(name, ClientCA, user, groups...)
		l.Renewed = func() error { return c.kubeconfig(p, l).Write(KubeconfigFile(c.Dirs, name), 0o600) }
		return l
	}
	// The administrator's rights come by a ClusterRoleBinding: a file that was lost can be made worthless without a
	// new CA.
	admin := client(Admin, ClientCA, "umiak:admin", wellknown.AdminsGroup)
	admin.Lifetime, admin.Steady = certfiles.AdminLifetime, false // it is read when it is used
	admin.Renewed = func() error { return c.writeAdmin(p, admin) }
	return []Leaf{
		client(KubeletClient, ClientCA, wellknown.KubeletClientUser),
		client(FrontProxy, RequestHeaderCA, wellknown.FrontProxyUser),
		component(ControllerManager, "system:kube-controller-manager"),
		component(Scheduler, "system:kube-scheduler"),
		component(Own, "umiak:server", "system:masters"), // beside the keys of the authorities, which can do no less
		admin,
	}
}

func (c ControlPlane) kubeconfig(p *PKI, l Leaf) Kubeconfig {
	return Kubeconfig{Server: c.URL, CAFile: p.CACert(ServerCA), CertFile: l.CertFile, KeyFile: l.KeyFile}
}

// writeAdmin writes the administrator's kubeconfig, and its copy.
func (c ControlPlane) writeAdmin(p *PKI, l Leaf) error {
	k := c.kubeconfig(p, l)
	k.Embed = true
	if err := k.Write(c.Dirs.AdminKubeconfig(), 0o600); err != nil {
		return err
	}
	to := c.AdminCopy
	if to.File == "" {
		return nil
	}
	mode := to.Mode.Perm()
	switch {
	case mode&0o077 != 0:
		c.Log.Warn("write-kubeconfig-mode lets others on this machine administer the cluster",
			"file", to.File, "mode", strconv.FormatUint(uint64(mode), 8))
	case to.Group != NoGroup:
		c.Log.Warn("write-kubeconfig-group does not let the group read the file; set write-kubeconfig-mode to 0640",
			"file", to.File, "mode", strconv.FormatUint(uint64(mode), 8))
	}
	k.Name = to.Name
	if err := k.Write(to.File, mode); err != nil {
		return err
	}
	if err := os.Chown(to.File, -1, to.Group); err != nil {
		return fmt.Errorf("set the group of the administrator's kubeconfig: %w", err)
	}
	return nil
}

// ServingLeaf returns the API server's certificate.
func (p *PKI) ServingLeaf(names, ips []string) Leaf {
	return Leaf{
		Name: APIServer, CA: ServerCA, CertFile: p.CertFile(APIServer), KeyFile: p.KeyFile(APIServer),
		CommonName: "kube-apiserver",
		Server:     true, WithCA: true, // a machine that joins learns the CA from the handshake
		DNSNames: names, IPs: ips,
	}
}

// EtcdLeaves returns the certificates with which the members of an etcd cluster authenticate to each other. The serving
// one is for the name that members verify, so that addresses may change.
func (p *PKI) EtcdLeaves(name string) []Leaf {
	leaf := func(file string) Leaf {
		return Leaf{Name: file, CA: EtcdCA, CertFile: p.CertFile(file), KeyFile: p.KeyFile(file), CommonName: "umiak:etcd"}
	}
	serving := leaf(EtcdPeer)
	serving.Server, serving.DNSNames = true, []string{name}
	return []Leaf{serving, leaf(EtcdPeerClient)}
}

// NodeLeaf returns a node's certificate. Only the serving one has names and addresses.
func NodeLeaf(id nodecerts.Identity, names, ips []string) Leaf {
	l := Leaf{CA: ClientCA, CommonName: id.User, Organization: id.Groups}
	if id.Serving {
		l.CA, l.Server, l.DNSNames, l.IPs = ServerCA, true, names, ips
	}
	return l
}

// LocalNode describes the node in a server's process. Its identity comes from the server's authorities directly.
type LocalNode struct {
	Dirs layout.Dirs
	// URL is where this machine reaches its API server.
	URL  string
	Name string
	IPs  []string
	// DNSNames are further names.
	DNSNames []string
}

// Add writes the node's certificates, kubeconfigs and authorities to the files of agent.Joiner, and renews them.
func (n LocalNode) Add(p *PKI) error {
	file := func(name string) string { return filepath.Join(n.Dirs.AgentPKI(), name) }
	if err := os.MkdirAll(n.Dirs.AgentPKI(), 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	// Again with every leaf: a rotation changes both.
	trust := func() error {
		return errors.Join(WriteIfChanged(file(nodecerts.ServerCA+".crt"), p.CAPEM(ServerCA), 0o644),
			WriteIfChanged(file(nodecerts.ClientCA+".crt"), p.CAPEM(ClientCA), 0o644))
	}
	for _, c := range []struct {
		id         nodecerts.Identity
		kubeconfig string
	}{
		{nodecerts.Kubelet(n.Name), n.Dirs.KubeletKubeconfig()}, {nodecerts.Agent(n.Name), n.Dirs.AgentKubeconfig()},
		{nodecerts.Serving(n.Name), ""},
	} {
		l := NodeLeaf(c.id, slices.Concat([]string{n.Name}, n.DNSNames), slices.Concat([]string{"127.0.0.1"}, n.IPs))
		l.Name, l.CertFile, l.KeyFile = "node "+n.Name+" "+c.id.File, file(c.id.File+".crt"), file(c.id.File+".key")
		if c.kubeconfig != "" {
			l.Steady = true
			k := Kubeconfig{Server: n.URL, CAFile: file(nodecerts.ServerCA + ".crt"), CertFile: l.CertFile,
				KeyFile: l.KeyFile}
			l.Renewed = func() error { return errors.Join(trust(), k.Write(c.kubeconfig, 0o600)) }
		}
		if err := p.Add(l); err != nil {
			return err
		}
	}
	return nil
}
