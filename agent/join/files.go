package join

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
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
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// The files of the node's identity, see agent.Joiner.
const (
	serverCA       = "server-ca.crt"
	clientCA       = "client-ca.crt"
	kubeletClient  = "kubelet-client"
	kubeletServing = "kubelet-serving"
	agentClient    = "agent-client"
)

var identities = []string{kubeletClient, kubeletServing, agentClient}

func (j *Joiner) file(name string) string { return filepath.Join(j.cfg.Dirs.AgentPKI(), name) }

// joined is what the node keeps of the last answer, besides certificates. It is written last, so that
// where it is, everything else is.
type joined struct {
	Node     string           `json:"node"`
	IPs      []string         `json:"ips"`
	External []string         `json:"externalIPs,omitempty"`
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

// load finds out whether this machine is a node already.
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
		return nil, fmt.Errorf("%s cannot be read: %w", j.cfg.Dirs.Joined(), err)
	}
	if s.Node != name {
		return nil, fmt.Errorf("it joined as node %s, and is %s now", s.Node, name)
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

// FlannelBackend is that of the cluster that this machine joined last, "" if it has joined none.
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

// last returns what was kept of the last answer, nil if that cannot be read.
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

// trusts says whether the CA with a hash is one of those that the node trusts.
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

// adopt makes what was loaded or accepted the present state.
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
		close(j.news)
		j.news = make(chan struct{})
	}
	j.joined, j.ends, j.state, j.detail, j.said = s, ends, "joined", "", ""
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

// due is when the certificates are to be renewed: after two thirds of their life, not all nodes in the
// same minute; at once where the node has other addresses than they say.
func (j *Joiner) due() time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !slices.Equal(j.node.IPs, j.joined.IPs) || !slices.Equal(j.node.ExternalIPs, j.joined.External) {
		return time.Time{}
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(j.joined.Node))
	early := j.joined.Lifetime / 24 / 1024 * time.Duration(h.Sum32()%1024)
	return j.ends.Add(-j.joined.Lifetime/3 - early)
}

// request makes what is missing of keys and password, and asks for certificates.
func (j *Joiner) request() (*joinwire.NodeRequest, error) {
	j.mu.Lock()
	n := j.node
	j.mu.Unlock()
	password, err := token.SecretFile(j.cfg.Dirs.NodePassword())
	if err != nil {
		return nil, err
	}
	req := &joinwire.NodeRequest{Name: n.Name, IPs: n.IPs, ExternalIPs: n.ExternalIPs, Password: password}
	kubelet := pkix.Name{CommonName: wellknown.NodeUserPrefix + n.Name, Organization: []string{wellknown.NodesGroup}}
	agent := pkix.Name{CommonName: wellknown.AgentUserPrefix + n.Name, Organization: []string{wellknown.AgentsGroup}}
	var ips []net.IP
	for _, s := range n.IPs {
		ips = append(ips, net.ParseIP(s))
	}
	for _, c := range []struct {
		id  string
		csr x509.CertificateRequest
		to  *string
	}{
		{kubeletClient, x509.CertificateRequest{Subject: kubelet}, &req.Kubelet},
		{agentClient, x509.CertificateRequest{Subject: agent}, &req.Agent},
		{kubeletServing, x509.CertificateRequest{Subject: kubelet, DNSNames: []string{n.Name}, IPAddresses: ips}, &req.Serving},
	} {
		key, err := ensureKey(j.file(c.id + ".key"))
		if err != nil {
			return nil, err
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &c.csr, key)
		if err != nil {
			return nil, fmt.Errorf("make CSR of %s: %w", c.id, err)
		}
		*c.to = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	}
	return req, nil
}

// ensureKey loads a key or makes it. One that cannot be read is replaced: a node can always get another.
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
		return nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return key, atomicfile.Write(file, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// maxLifetime bounds what a server may say of how long certificates are good, which the time of renewal is computed from.
const maxLifetime = 100 * 365 * 24 * time.Hour

// accept checks an answer and writes it down. pinned is the hash that the server CA must have, where the
// node does not know it yet.
func (j *Joiner) accept(resp *joinwire.NodeResponse, pinned string) error {
	j.mu.Lock()
	node := j.node
	j.mu.Unlock()
	if pinned != "" && !token.HoldsCA([]byte(resp.ServerCA), pinned) {
		return fmt.Errorf("%w: the CA in its answer is not the one that has signed its certificate", token.ErrWrongServer)
	}
	certs := map[string]string{kubeletClient: resp.Kubelet, agentClient: resp.Agent, kubeletServing: resp.Serving}
	for _, id := range identities {
		key, err := os.ReadFile(j.file(id + ".key"))
		if err != nil {
			return fmt.Errorf("read key: %w", err)
		}
		if _, err := tls.X509KeyPair([]byte(certs[id]), key); err != nil {
			return fmt.Errorf("the server's answer cannot be used: certificate %s: %w", id, err)
		}
	}
	for _, ca := range []string{resp.ServerCA, resp.ClientCA} {
		if !x509.NewCertPool().AppendCertsFromPEM([]byte(ca)) {
			return errors.New("the server's answer cannot be used: an authority is missing")
		}
	}
	if resp.LifetimeSeconds <= 0 || resp.LifetimeSeconds > int64(maxLifetime/time.Second) {
		return fmt.Errorf("the server's answer cannot be used: certificates for %d seconds", resp.LifetimeSeconds)
	}
	if err := j.cfg.Balancer.Set(resp.Servers); err != nil {
		return fmt.Errorf("the server's answer cannot be used: %w", err)
	}
	var errs []error
	for _, f := range []struct{ name, text string }{{serverCA, resp.ServerCA}, {clientCA, resp.ClientCA},
		{kubeletClient + ".crt", resp.Kubelet}, {agentClient + ".crt", resp.Agent}, {kubeletServing + ".crt", resp.Serving}} {
		errs = append(errs, writeIfChanged(j.file(f.name), []byte(f.text), 0o644))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := j.writeKubeconfigs(); err != nil {
		return err
	}
	s := &joined{Node: node.Name, IPs: node.IPs, External: node.ExternalIPs, Cluster: resp.Cluster, Lifetime: time.Duration(resp.LifetimeSeconds) * time.Second}
	s.Cluster.APIServer = "https://" + j.cfg.Local
	return j.remember(s)
}

// remember writes down what the cluster has said, and adopts it.
func (j *Joiner) remember(s *joined) error {
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

// writeKubeconfigs names the balancer as the API server, so that they stay the same whatever server answers,
// and files for all that is renewed: their readers follow.
func (j *Joiner) writeKubeconfigs() error {
	for file, id := range map[string]string{j.cfg.Dirs.KubeletKubeconfig(): kubeletClient, j.cfg.Dirs.AgentKubeconfig(): agentClient} {
		c := clientcmdapi.NewConfig()
		c.Clusters["umiak"] = &clientcmdapi.Cluster{Server: "https://" + j.cfg.Local, TLSServerName: token.ServerName, CertificateAuthority: j.file(serverCA)}
		c.AuthInfos["umiak"] = &clientcmdapi.AuthInfo{ClientCertificate: j.file(id + ".crt"), ClientKey: j.file(id + ".key")}
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

// client is the agent's own.
func (j *Joiner) client() (kubernetes.Interface, error) {
	return clientOf(j.cfg.Dirs.AgentKubeconfig())
}

func clientOf(kubeconfig string) (kubernetes.Interface, error) {
	rc, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", kubeconfig, err)
	}
	return kubernetes.NewForConfig(rest.AddUserAgent(rc, "umiak-join"))
}
