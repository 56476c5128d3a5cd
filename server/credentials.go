package server

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/umiak-io/umiak/internal/certfiles"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/wellknown"
	"github.com/umiak-io/umiak/server/controlplane"
	"github.com/umiak-io/umiak/server/encryption"
	"github.com/umiak-io/umiak/server/pki"
)

// defaultAudit notes who changed what, without the content: requests hold secrets.
const defaultAudit = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  resources:
  - group: ""
    resources: [events]
  - group: events.k8s.io
  - group: coordination.k8s.io
    resources: [leases]
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
- level: Metadata
  resources:
  - group: ""
    resources: [secrets, pods/exec, pods/attach, pods/portforward, pods/proxy, services/proxy, nodes/proxy]
- level: None
`

// prepare writes every file that the components read; more are certificates beside those of the control plane.
func (s *Server) prepare(cfg pki.Config, more []pki.Leaf) error {
	for _, dir := range []string{s.dirs.Server(), s.dirs.ServerKubeconfigs()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	cfg.Dir, cfg.Log = s.dirs.ServerPKI(), s.log.With("component", "certificates")
	var err error
	if s.pki, err = pki.Ensure(cfg); err != nil {
		return err
	}
	if err := encryption.Ensure(s.dirs.EncryptionConfig()); err != nil {
		return err
	}
	if file := s.cfg.auditFile(); file != "" {
		if err := pki.WriteIfChanged(s.auditPolicyFile(), []byte(defaultAudit), 0o600); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return fmt.Errorf("make folder of audit-log: %w", err)
		}
	}
	for _, l := range append(s.leaves(), more...) {
		if err := s.pki.Add(l); err != nil {
			return err
		}
		if l.Name == servingName {
			s.servingIPs = l.IPs
		}
	}
	return nil
}

const (
	// servingName names the API server's certificate.
	servingName = "apiserver"
	// ownName names the certificate and the kubeconfig with which this process does its own work.
	ownName = "server"
)

// leaves are the control plane's own certificates.
func (s *Server) leaves() []pki.Leaf {
	client := func(name string, ca pki.CA, user string, groups ...string) pki.Leaf {
		return pki.Leaf{Name: name, CA: ca, CertFile: s.pki.File(name + ".crt"), KeyFile: s.pki.File(name + ".key"), CommonName: user, Organization: groups, Steady: true}
	}
	component := func(name, user string, groups ...string) pki.Leaf {
		l := client(name, pki.ClientCA, user, groups...)
		l.Renewed = func() error {
			return s.kubeconfig(l).Write(filepath.Join(s.dirs.ServerKubeconfigs(), name+".kubeconfig"), 0o600)
		}
		return l
	}
	// The administrator's rights come by a ClusterRoleBinding: a file that was lost can be made worthless without a new CA.
	admin := client("admin", pki.ClientCA, "umiak:admin", wellknown.AdminsGroup)
	admin.Lifetime, admin.Steady = certfiles.AdminLifetime, false // it is read when it is used
	admin.Renewed = func() error { return s.writeAdmin(admin) }
	return []pki.Leaf{
		s.servingLeaf(),
		client("kubelet-client", pki.ClientCA, controlplane.KubeletClientUser),
		client("front-proxy", pki.RequestHeaderCA, controlplane.FrontProxyUser),
		component("controller-manager", "system:kube-controller-manager"),
		component("scheduler", "system:kube-scheduler"),
		component(ownName, "umiak:server", "system:masters"), // beside the keys of the authorities, which can do no less
		admin,
	}
}

// servingLeaf is the API server's, for all names and addresses by which it is known.
func (s *Server) servingLeaf() pki.Leaf {
	l := pki.Leaf{
		Name: servingName, CA: pki.ServerCA, CertFile: s.pki.File("apiserver.crt"), KeyFile: s.pki.File("apiserver.key"),
		CommonName: "kube-apiserver", Server: true, WithCA: true, // a machine that joins learns the CA from the handshake
		DNSNames: append([]string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + s.cfg.ClusterDomain, "localhost"}, hostname()...),
		IPs:      []string{"127.0.0.1", "::1"},
	}
	for _, a := range slices.Concat([]string{s.advertise()}, config.Texts(s.nodeIPs()), config.Texts(s.cfg.NodeExternalIP)) {
		if a != "" && !slices.Contains(l.IPs, a) {
			l.IPs = append(l.IPs, a)
		}
	}
	for _, p := range s.cfg.ServiceCIDR {
		l.IPs = append(l.IPs, p.Addr().Next().String())
	}
	if a := s.cfg.BindAddress; a.IsValid() && !a.IsUnspecified() {
		l.IPs = append(l.IPs, a.String())
	}
	for _, san := range s.cfg.TLSSAN {
		if ip, err := netip.ParseAddr(san); err == nil {
			if !ip.IsUnspecified() {
				l.IPs = append(l.IPs, ip.String())
			}
		} else {
			l.DNSNames = append(l.DNSNames, san)
		}
	}
	return l
}

// tlsSANs returns the addresses of the setting tls-san. The server's own addresses, which may change, are not among them.
func (s *Server) tlsSANs() (out []netip.Addr) {
	for _, san := range s.cfg.TLSSAN {
		if ip, err := netip.ParseAddr(san); err == nil {
			out = append(out, ip.Unmap())
		}
	}
	return out
}

func (s *Server) kubeconfig(l pki.Leaf) pki.Kubeconfig {
	return pki.Kubeconfig{Server: s.loopbackURL(), CAFile: s.pki.CACert(pki.ServerCA), CertFile: l.CertFile, KeyFile: l.KeyFile}
}

// writeAdmin writes the administrator's kubeconfig, and the copy that the user wants.
func (s *Server) writeAdmin(l pki.Leaf) error {
	k := s.kubeconfig(l)
	k.Embed = true
	if err := k.Write(s.dirs.AdminKubeconfig(), 0o600); err != nil {
		return err
	}
	if s.cfg.WriteKubeconfig == "" {
		return nil
	}
	mode := fs.FileMode(s.cfg.WriteKubeconfigMode)
	if mode&0o077 != 0 {
		s.log.Warn("write-kubeconfig-mode lets others on this machine administer the cluster", "file", s.cfg.WriteKubeconfig, "mode", s.cfg.WriteKubeconfigMode.String())
	}
	return k.Write(s.cfg.WriteKubeconfig, mode)
}
