package imageshare

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	v1 "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/agent/runtime/images"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// memory is a Store.
type memory struct {
	mu     sync.Mutex
	blobs  map[digest.Digest][]byte
	images map[string]digest.Digest
	labels map[digest.Digest]map[string]string
	// cut ends reading behind so many bytes, as when a blob is removed meanwhile.
	cut int64
	// hold keeps all reads but the first waiting.
	hold chan struct{}
	read int
}

func newMemory() *memory {
	return &memory{blobs: map[digest.Digest][]byte{}, images: map[string]digest.Digest{},
		labels: map[digest.Digest]map[string]string{}}
}

func (m *memory) put(raw []byte) digest.Digest {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := digest.FromBytes(raw)
	m.blobs[d] = raw
	return d
}

// swap puts something else where a blob should be.
func (m *memory) swap(d digest.Digest, raw []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blobs[d] = raw
}

// pulled notes on blobs what containerd notes of where they were pulled from.
func (m *memory) pulled(registry, repositories string, blobs ...digest.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range blobs {
		m.labels[d] = map[string]string{"containerd.io/distribution.source." + registry: repositories}
	}
}

// cutAt has reads end behind so many bytes.
func (m *memory) cutAt(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut = n
}

// image puts an image of one layer under a name, and returns its manifest's digest.
func (m *memory) image(name string, layer []byte) (manifest digest.Digest) {
	l := m.put(layer)
	c := m.put([]byte(`{"os":"linux"}`))
	manifest = m.put(fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":14},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, c, ocispec.MediaTypeImageLayer, l, len(layer)))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.images[name] = manifest
	return manifest
}

func (m *memory) get(d digest.Digest) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if raw, ok := m.blobs[d]; ok {
		return raw, nil
	}
	return nil, errdefs.ErrNotFound
}

func (m *memory) Info(_ context.Context, d digest.Digest) (content.Info, error) {
	raw, err := m.get(d)
	m.mu.Lock()
	defer m.mu.Unlock()
	return content.Info{Digest: d, Size: int64(len(raw)), Labels: m.labels[d]}, err
}

func (m *memory) Images(_ context.Context, repository string) ([]digest.Digest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []digest.Digest
	for name, d := range m.images {
		if images.RepositoryOf(name) == repository {
			out = append(out, d)
		}
	}
	return out, nil
}

func (m *memory) Image(_ context.Context, name string) (digest.Digest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d, ok := m.images[name]; ok {
		return d, nil
	}
	return "", errdefs.ErrNotFound
}

func (m *memory) Open(_ context.Context, d digest.Digest) (content.ReaderAt, error) {
	raw, err := m.get(d)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.read++
	return reader{bytes.NewReader(raw), m.cut, m.hold}, err
}

type reader struct {
	*bytes.Reader
	cut  int64
	hold chan struct{}
}

func (r reader) Close() error { return nil }

func (r reader) ReadAt(p []byte, off int64) (int, error) {
	if r.hold != nil && off > 0 {
		<-r.hold
	}
	if r.cut > 0 {
		if off >= r.cut {
			return 0, errdefs.ErrNotFound
		}
		p = p[:min(int64(len(p)), r.cut-off)]
	}
	return r.Reader.ReadAt(p, off)
}

// lab is a cluster whose nodes have addresses of this machine.
type lab struct {
	*testing.T
	serverCA, clientCA *authority
	port               int
	nodes              map[string]*node
}

type node struct {
	*Share
	name  string
	addr  netip.Addr
	store *memory
	end   func()
}

func newLab(t *testing.T) *lab {
	t.Helper()
	return &lab{T: t, serverCA: newAuthority(t), clientCA: newAuthority(t), nodes: map[string]*node{}}
}

// add starts a node, and tells all of each other.
func (l *lab) add(name string, server bool) *node {
	l.Helper()
	n := &node{name: name, addr: netip.AddrFrom4([4]byte{127, 0, 77, byte(1 + len(l.nodes))}), store: newMemory()}
	pki := l.TempDir()
	l.serverCA.save(l.T, pki, "server-ca")
	l.clientCA.save(l.T, pki, "client-ca")
	l.serverCA.issue(l.T, "system:node:"+name, "system:nodes", name).save(l.T, pki, "kubelet-serving")
	l.clientCA.issue(l.T, wellknown.AgentUserPrefix+name, wellknown.AgentsGroup).save(l.T, pki, "agent-client")
	n.Share = New(Config{Node: name, PKI: pki,
		Log: slog.New(slog.NewTextHandler(l.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))})
	lis, err := net.Listen("tcp", netip.AddrPortFrom(n.addr, uint16(l.port)).String())
	if err != nil {
		l.Fatal(err)
	}
	l.port = lis.Addr().(*net.TCPAddr).Port
	n.port = l.port
	ctx, cancel := context.WithCancel(l.Context())
	done := make(chan error, 1)
	go func() { done <- n.serve(ctx, n.store, []net.Listener{lis}) }()
	n.end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			l.Error(err)
		}
		n.http.CloseIdleConnections()
	})
	l.Cleanup(n.end)
	l.nodes[name] = n
	for _, from := range l.nodes {
		for _, to := range l.nodes {
			from.Set(object(to.name, to.addr.String(), to == n && server || to != n && to.nodes.selfIsServer()))
		}
	}
	return n
}

// object is a Node as Keep leaves it.
func object(name, addr string, server bool, images ...string) *v1.Node {
	n := &v1.Node{}
	n.Name = name
	if server {
		n.Labels = map[string]string{wellknown.ServerRole: ""}
	}
	n.Status.Addresses = []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: addr}}
	if len(images) > 0 {
		n.Status.Images = []v1.ContainerImage{{Names: images}}
	}
	return n
}

// get asks a node as another does.
func (l *lab) get(from, to *node, method, path, part string) (*http.Response, string) {
	l.Helper()
	r, err := http.NewRequestWithContext(l.Context(), method, fmt.Sprintf("https://%s:%d%s", to.name, l.port, path),
		nil)
	if err != nil {
		l.Fatal(err)
	}
	if part != "" {
		r.Header.Set("Range", part)
	}
	resp, err := from.http.RoundTrip(r)
	if err != nil {
		l.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp, err.Error()
	}
	return resp, string(raw)
}

// registries is a Registry whose hosts are all the same one.
type registries struct{ url string }

func (r registries) Hosts(string, func(string) (string, string, error)) ([]docker.RegistryHost, error) {
	scheme, host, _ := strings.Cut(r.url, "://")
	return []docker.RegistryHost{{
		Client: &http.Client{Transport: &http.Transport{}}, Scheme: scheme, Host: host, Path: "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
		Header:       http.Header{"Authorization": {"Basic c2VjcmV0"}},
	}}, nil
}

// nobody is where no registry answers.
func nobody(t *testing.T) registries {
	t.Helper()
	s := httptest.NewServer(nil)
	s.Close()
	return registries{s.URL}
}

// pull resolves an image and reads its manifest and its first layer, as containerd does.
func (n *node) pull(ctx context.Context, r Registry, ref string) (manifest digest.Digest, layer []byte, err error) {
	n.cfg.Registry = r
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: func(h string) ([]docker.RegistryHost,
		error) {
		return n.Hosts(h, nil)
	}})
	name, desc, err := resolver.Resolve(ctx, ref)
	if err != nil {
		return "", nil, fmt.Errorf("resolve: %w", err)
	}
	f, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return "", nil, err
	}
	fetch := func(d ocispec.Descriptor) ([]byte, error) {
		r, err := f.Fetch(ctx, d)
		if err != nil {
			return nil, err
		}
		raw, err := io.ReadAll(r)
		return raw, errors.Join(err, r.Close())
	}
	raw, err := fetch(desc)
	if err != nil {
		return "", nil, fmt.Errorf("manifest: %w", err)
	}
	var m ocispec.Manifest
	if err := decode(raw, &m); err != nil {
		return "", nil, err
	}
	if layer, err = fetch(m.Layers[0]); err != nil {
		return desc.Digest, nil, fmt.Errorf("layer: %w", err)
	}
	if digest.FromBytes(layer) != m.Layers[0].Digest {
		err = errors.New("the layer is another")
	}
	return desc.Digest, layer, err
}

// authority is a CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

type pair struct{ cert, key []byte }

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) save(t *testing.T, dir, name string) {
	t.Helper()
	write(t, filepath.Join(dir, name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

func (a *authority) issue(t *testing.T, user, group string, dns ...string) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	use := x509.ExtKeyUsageClientAuth
	if len(dns) > 0 {
		use = x509.ExtKeyUsageServerAuth
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2),
		Subject: pkix.Name{CommonName: user, Organization: []string{group}}, DNSNames: dns,
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{use},
		KeyUsage: x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pair{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: k})}
}

func (p pair) save(t *testing.T, dir, name string) {
	t.Helper()
	write(t, filepath.Join(dir, name+".crt"), p.cert)
	write(t, filepath.Join(dir, name+".key"), p.key)
}

func (p pair) tls(t *testing.T) *tls.Certificate {
	t.Helper()
	c, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	return &c
}

func write(t *testing.T, file string, raw []byte) {
	t.Helper()
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}
