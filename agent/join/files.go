package join

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/kubeclient"
	"github.com/umiak-io/umiak/internal/nodecerts"
	"github.com/umiak-io/umiak/internal/token"
)

// The files of the authorities that the node trusts.
const (
	serverCA = nodecerts.ServerCA + ".crt"
	clientCA = nodecerts.ClientCA + ".crt"
)

var identities = []string{nodecerts.KubeletClient, nodecerts.KubeletServing, nodecerts.AgentClient}

func (j *Joiner) file(name string) string { return filepath.Join(j.cfg.Dirs.AgentPKI(), name) }

// joined is what the node stores of the last answer, besides certificates. The file is written last: if it exists, all
// others do.
type joined struct {
	Node     string           `json:"node"`
	IPs      []string         `json:"ips"`
	External []string         `json:"externalIPs,omitempty"`
	DNSNames []string         `json:"dnsNames,omitempty"`
	Cluster  joinwire.Cluster `json:"cluster"`
	Lifetime time.Duration    `json:"lifetime"`
}

func parseJoined(raw []byte) (*joined, error) {
	var s joined
	if err := joinwire.DecodeAnswer(bytes.NewReader(raw), &s); err != nil {
		return nil, err
	}
	if s.Node == "" || s.Lifetime <= 0 || s.Cluster.APIServer == "" {
		return nil, errors.New("it is incomplete")
	}
	return &s, nil
}

// load reads the node's identity. The error says why this machine has to join.
func (j *Joiner) load(name string) (*joined, error) {
	raw, err := os.ReadFile(j.cfg.Dirs.Joined())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("it has not joined a cluster yet")
	}
	if err != nil {
		return nil, err
	}
	s, err := parseJoined(raw)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", j.cfg.Dirs.Joined(), err)
	}
	if s.Node != name {
		return nil, fmt.Errorf("it joined as node %s, and its name is now %s", s.Node, name)
	}
	for _, id := range identities {
		if _, err := j.keyPair(id); err != nil {
			return nil, err
		}
	}
	for _, ca := range []string{serverCA, clientCA} {
		raw, err := os.ReadFile(j.file(ca))
		if err != nil {
			return nil, err
		}
		if !x509.NewCertPool().AppendCertsFromPEM(raw) {
			return nil, fmt.Errorf("%s holds no certificate", j.file(ca))
		}
	}
	return s, nil
}

// FlannelBackend is the backend of the cluster that this machine joined last, "" if it has joined none.
func (j *Joiner) FlannelBackend() string {
	if s := j.last(); s != nil {
		return s.Cluster.FlannelBackend
	}
	return ""
}

// EarlierIPs are the addresses with which this machine joined last, nil if it has joined no cluster.
func (j *Joiner) EarlierIPs() []string {
	if s := j.last(); s != nil {
		return s.IPs
	}
	return nil
}

// last returns the stored answer, nil if there is none or it cannot be read.
func (j *Joiner) last() *joined {
	raw, err := os.ReadFile(j.cfg.Dirs.Joined())
	if err != nil {
		return nil
	}
	s, err := parseJoined(raw)
	if err != nil {
		return nil
	}
	return s
}

// trusts reports whether the node trusts a CA with this hash.
func (j *Joiner) trusts(hash string) bool {
	raw, err := os.ReadFile(j.file(serverCA))
	return err == nil && token.HoldsCA(raw, hash)
}

func (j *Joiner) keyPair(id string) (*tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(j.file(id+".crt"), j.file(id+".key"))
	if err != nil {
		return nil, fmt.Errorf("read certificate %s: %w", id, err)
	}
	return &c, nil
}

// adopt makes a loaded or accepted answer the current one.
func (j *Joiner) adopt(s *joined) {
	var ends time.Time
	for _, id := range identities {
		if c, err := j.keyPair(id); err == nil && (ends.IsZero() || c.Leaf.NotAfter.Before(ends)) {
			ends = c.Leaf.NotAfter
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.joined != nil && !reflect.DeepEqual(j.joined.Cluster, s.Cluster) {
		close(j.changed)
		j.changed = make(chan struct{})
	}
	j.joined, j.ends, j.state, j.detail, j.logged = s, ends, "joined", "", ""
}

func (j *Joiner) current() joined {
	j.mu.Lock()
	defer j.mu.Unlock()
	return *j.joined
}

func (j *Joiner) end() time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ends
}

// due is when to renew the certificates: after two thirds of their lifetime, at a time that differs between nodes; at
// once if the node's addresses differ from those in the certificates.
func (j *Joiner) due() time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !slices.Equal(j.node.IPs, j.joined.IPs) || !slices.Equal(j.node.ExternalIPs, j.joined.External) ||
		!slices.Equal(j.node.DNSNames, j.joined.DNSNames) {
		return time.Time{}
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(j.joined.Node))
	early := j.joined.Lifetime / 24 / 1024 * time.Duration(h.Sum32()%1024)
	return j.ends.Add(-j.joined.Lifetime/3 - early)
}

// request creates missing keys and the node password, and returns a request for certificates.
func (j *Joiner) request() (*joinwire.NodeRequest, error) {
	j.mu.Lock()
	n := j.node
	j.mu.Unlock()
	password, err := token.SecretFile(j.cfg.Dirs.NodePassword())
	if err != nil {
		return nil, err
	}
	req := &joinwire.NodeRequest{Name: n.Name, IPs: n.IPs, ExternalIPs: n.ExternalIPs, DNSNames: n.DNSNames,
		Password: password}
	var ips []net.IP
	for _, s := range n.IPs {
		ips = append(ips, net.ParseIP(s))
	}
	for _, c := range []struct {
		id nodecerts.Identity
		to *string
	}{
		{nodecerts.Kubelet(n.Name), &req.Kubelet}, {nodecerts.Agent(n.Name), &req.Agent},
		{nodecerts.Serving(n.Name), &req.Serving},
	} {
		csr := x509.CertificateRequest{Subject: c.id.Subject()}
		if c.id.Serving {
			csr.DNSNames, csr.IPAddresses = []string{n.Name}, ips
		}
		key, err := ensureKey(j.file(c.id.File + ".key"))
		if err != nil {
			return nil, err
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &csr, key)
		if err != nil {
			return nil, fmt.Errorf("create CSR of %s: %w", c.id.File, err)
		}
		*c.to = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	}
	return req, nil
}

// ensureKey loads a key, or creates it if it is missing or unreadable: the node can always request a certificate for a
// new key.
func ensureKey(file string) (*ecdsa.PrivateKey, error) {
	raw, err := os.ReadFile(file)
	if err == nil {
		if b, _ := pem.Decode(raw); b != nil {
			if key, err := x509.ParseECPrivateKey(b.Bytes); err == nil {
				return key, os.Chmod(file, 0o600)
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read key: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("create key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("create key: %w", err)
	}
	return key, atomicfile.Write(file, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// maxLifetime bounds the certificate lifetime that a server may announce, from which the time of renewal is computed.
const maxLifetime = 100 * 365 * 24 * time.Hour

// accept validates an answer and stores it. pinned is the hash that the server CA must have, "" if the node trusts a CA
// already.
func (j *Joiner) accept(resp *joinwire.NodeResponse, pinned string) error {
	j.mu.Lock()
	node := j.node
	j.mu.Unlock()
	if pinned != "" && !token.HoldsCA([]byte(resp.ServerCA), pinned) {
		return fmt.Errorf("%w: the CA in its answer did not sign its certificate", token.ErrWrongServer)
	}
	certs := map[string]string{nodecerts.KubeletClient: resp.Kubelet, nodecerts.AgentClient: resp.Agent,
		nodecerts.KubeletServing: resp.Serving}
	for _, id := range identities {
		key, err := os.ReadFile(j.file(id + ".key"))
		if err != nil {
			return fmt.Errorf("read key: %w", err)
		}
		if _, err := tls.X509KeyPair([]byte(certs[id]), key); err != nil {
			return fmt.Errorf("the server's answer is invalid: certificate %s: %w", id, err)
		}
	}
	for _, ca := range []string{resp.ServerCA, resp.ClientCA} {
		if !x509.NewCertPool().AppendCertsFromPEM([]byte(ca)) {
			return errors.New("the server's answer is invalid: a CA is missing")
		}
	}
	if resp.LifetimeSeconds <= 0 || resp.LifetimeSeconds > int64(maxLifetime/time.Second) {
		return fmt.Errorf("the server's answer is invalid: certificate lifetime of %d seconds", resp.LifetimeSeconds)
	}
	if err := j.cfg.Balancer.Set(resp.Servers); err != nil {
		return fmt.Errorf("the server's answer is invalid: %w", err)
	}
	var errs []error
	for _, f := range []struct{ name, text string }{{serverCA, resp.ServerCA}, {clientCA, resp.ClientCA},
		{nodecerts.KubeletClient + ".crt", resp.Kubelet}, {nodecerts.AgentClient + ".crt", resp.Agent},
		{nodecerts.KubeletServing + ".crt", resp.Serving}} {
		errs = append(errs, writeIfChanged(j.file(f.name), []byte(f.text), 0o644))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := j.writeKubeconfigs(); err != nil {
		return err
	}
	s := &joined{Node: node.Name, IPs: node.IPs, External: node.ExternalIPs, DNSNames: node.DNSNames,
		Cluster: resp.Cluster, Lifetime: time.Duration(resp.LifetimeSeconds) * time.Second}
	s.Cluster.APIServer = "https://" + j.cfg.Local
	return j.store(s)
}

// store writes the answer to disk and adopts it.
func (j *Joiner) store(s *joined) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := writeIfChanged(j.cfg.Dirs.Joined(), raw, 0o600); err != nil {
		return err
	}
	j.adopt(s)
	return nil
}

// writeKubeconfigs writes the node's kubeconfigs. They name the balancer as the API server, so they do not depend on
// which server answers, and files for certificates and keys, which their readers reload after a renewal.
func (j *Joiner) writeKubeconfigs() error {
	for file, id := range map[string]string{j.cfg.Dirs.KubeletKubeconfig(): nodecerts.KubeletClient,
		j.cfg.Dirs.AgentKubeconfig(): nodecerts.AgentClient} {
		c := clientcmdapi.NewConfig()
		c.Clusters["umiak"] = &clientcmdapi.Cluster{Server: "https://" + j.cfg.Local, TLSServerName: token.ServerName,
			CertificateAuthority: j.file(serverCA)}
		c.AuthInfos["umiak"] = &clientcmdapi.AuthInfo{ClientCertificate: j.file(id + ".crt"),
			ClientKey: j.file(id + ".key")}
		c.Contexts["umiak"] = &clientcmdapi.Context{Cluster: "umiak", AuthInfo: "umiak"}
		c.CurrentContext = "umiak"
		raw, err := clientcmd.Write(*c)
		if err != nil {
			return fmt.Errorf("write kubeconfig: %w", err)
		}
		if err := writeIfChanged(file, raw, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func writeIfChanged(file string, data []byte, mode fs.FileMode) error {
	_, err := atomicfile.WriteIfChanged(file, data, mode)
	return err
}

// client returns a client with the agent's certificate.
func (j *Joiner) client() (kubernetes.Interface, error) {
	return clientOf(j.cfg.Dirs.AgentKubeconfig())
}

func clientOf(kubeconfig string) (kubernetes.Interface, error) {
	return kubeclient.Source{Kubeconfig: kubeconfig}.Client("umiak-join", 0)
}
