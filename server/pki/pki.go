package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/certfiles"
	"github.com/umiak-io/umiak/internal/wallclock"
)

// CA names one of the four authorities; it is also the name of its files.
type CA string

// The authorities. None of them is accepted where another is meant.
const (
	ServerCA        CA = "server-ca"         // serving certificates: API server, kubelets
	ClientCA        CA = "client-ca"         // who users, components and nodes are
	RequestHeaderCA CA = "request-header-ca" // the API server towards aggregated API servers
	EtcdCA          CA = "etcd-ca"           // between the members of an embedded etcd
)

// Released is wallclock.Released.
var Released = wallclock.Released

// Config describes the folder of keys and the lifetimes of certificates. The zero value of each field but Dir is the
// default of a cluster.
type Config struct {
	Dir          string
	CALifetime   time.Duration    // 10 years
	LeafLifetime time.Duration    // 90 days
	Now          func() time.Time // time.Now
	Log          *slog.Logger
}

// Leaf describes a certificate that is kept in files and kept fresh.
type Leaf struct {
	// Name names the certificate in status and logs.
	Name string
	CA   CA
	// CertFile and KeyFile may name the files of any folder that exists.
	CertFile, KeyFile string
	// CommonName and Organization are the user and its groups where it is a client's.
	CommonName   string
	Organization []string
	// Server makes it a serving certificate for the names and addresses.
	Server   bool
	DNSNames []string
	IPs      []string
	// WithCA puts the roots behind the leaf in CertFile, for those who have yet to learn them.
	WithCA bool
	// Steady leaves the certificate alone when its authority is replaced, until the server is started again:
	// client-go cuts all connections that were made with a certificate when it finds another in the file.
	Steady bool
	// Lifetime overrides the configured one.
	Lifetime time.Duration
	// Renewed is called after the files were written, and once when the leaf is added.
	Renewed func() error
}

func (l Leaf) ips() []net.IP {
	var out []net.IP
	for _, s := range l.IPs {
		if ip := net.ParseIP(s); ip != nil {
			out = append(out, ip)
		}
	}
	return out
}

// Certificate describes one certificate in status.
type Certificate struct {
	Name    string    `json:"name"`
	Subject string    `json:"subject"`
	CA      bool      `json:"ca,omitempty"`
	Ends    time.Time `json:"ends"`
	Renews  time.Time `json:"renews,omitzero"`
	Error   string    `json:"error,omitempty"`
}

// PKI holds the authorities and renews the leaves.
type PKI struct {
	cfg Config

	caMu sync.RWMutex // guards cas alone: the leaves' hooks ask for bundles
	cas  map[CA]*authority

	mu      sync.Mutex
	leaves  []*leaf
	changed chan struct{} // a leaf was added

	pending bool // a stage has replaced files and is not in force yet; Adopt alone uses it

	cut func() bool // for tests: whether power fails before the next file is written by Adopt
}

type leaf struct {
	Leaf
	ends time.Time
	err  error
}

// Ensure loads the authorities and the ServiceAccount key from the folder, and makes those that are missing. It returns
// an error for a CA that has expired, which differs where the clock is wrong instead. It is for a server that starts:
// it records the start for rotations that were begun before.
func Ensure(cfg Config) (*PKI, error) {
	p, err := Open(cfg)
	if err != nil {
		return nil, err
	}
	now := p.cfg.Now()
	if now.Before(Released) {
		p.cfg.Log.Warn("the clock is wrong: it is before this release was made; certificates work all the same and are renewed once it is set", "clock", now.UTC().Format(time.RFC3339), "release", Released.Format(time.DateOnly))
	}
	for _, name := range authorities {
		if end := p.ca(name).ends(); now.After(end) {
			return nil, fmt.Errorf("%s ended on %s and the clock says %s: set the clock if it is wrong, otherwise run `umiak certificate rotate-ca %s` and start again", name, end.Format(time.DateOnly), now.UTC().Format(time.RFC3339), name)
		}
	}
	return p, p.noteStart()
}

// Open is Ensure for commands that work on the files of a server that does not run: it takes authorities
// that have ended too.
func Open(cfg Config) (*PKI, error) {
	if cfg.CALifetime == 0 {
		cfg.CALifetime = 10 * 365 * 24 * time.Hour
	}
	if cfg.LeafLifetime == 0 {
		cfg.LeafLifetime = certfiles.LeafLifetime
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make PKI folder: %w", err)
	}
	if err := os.Chmod(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make PKI folder: %w", err)
	}
	if err := removeStages(cfg.Dir); err != nil {
		return nil, fmt.Errorf("remove what a rotation has left: %w", err)
	}
	p := &PKI{cfg: cfg, cas: map[CA]*authority{}, changed: make(chan struct{}, 1)}
	return p, p.load()
}

// load reads the authorities and the ServiceAccount key from the folder, and makes what is missing.
func (p *PKI) load() error {
	for _, name := range authorities {
		ca, err := ensureAuthority(p.path(name), "umiak-"+string(name), p.base().Add(p.cfg.CALifetime))
		if err != nil {
			return err
		}
		p.caMu.Lock()
		p.cas[name] = ca
		p.caMu.Unlock()
	}
	key, err := ensureKey(p.ServiceAccountKey())
	if err != nil {
		return err
	}
	return p.publishServiceAccount(key)
}

// authorities are all of them.
var authorities = []CA{ServerCA, ClientCA, RequestHeaderCA, EtcdCA}

// ca is an authority as it is now; nil if there is none of that name.
func (p *PKI) ca(name CA) *authority {
	p.caMu.RLock()
	defer p.caMu.RUnlock()
	return p.cas[name]
}

// base is the moment from which lifetimes count: now, or the release where the clock is behind that, so
// that what a machine with a wrong clock issues has not ended already when the clock is set.
func (p *PKI) base() time.Time {
	if now := p.cfg.Now(); now.After(Released) {
		return now
	}
	return Released
}

func (p *PKI) path(name CA) string { return filepath.Join(p.cfg.Dir, string(name)) }

// CACert is the file of the roots to trust: one, or during a rotation the new one and the old.
func (p *PKI) CACert(ca CA) string { return p.path(ca) + ".crt" }

// CASigner and CAKey are the certificate, exactly one, and the key with which the controller manager signs
// CSRs.
func (p *PKI) CASigner(ca CA) string { return p.path(ca) + "-signer.crt" }

// CAKey is the private key's file.
func (p *PKI) CAKey(ca CA) string { return p.path(ca) + ".key" }

// CAPEM returns the content of CACert: the authorities that a node gets at each renewal. The first certificate is the
// one to pin in new tokens.
func (p *PKI) CAPEM(ca CA) []byte { return p.ca(ca).bundle() }

// Sign issues a certificate for a key of another machine, and returns it in PEM form with its chain: during a rotation,
// clients that trust the old or the new root accept it. It ignores the files and Renewed of the leaf.
func (p *PKI) Sign(l Leaf, key crypto.PublicKey) ([]byte, error) {
	ca := p.ca(l.CA)
	if ca == nil {
		return nil, fmt.Errorf("sign certificate of %s: no CA %q", l.CommonName, l.CA)
	}
	crt, err := ca.sign(l, key, p.base().Add(p.lifetime(l)))
	if err != nil {
		return nil, err
	}
	return append(crt, ca.chain(l.WithCA)...), nil
}

// ServiceAccountKey signs ServiceAccount tokens.
func (p *PKI) ServiceAccountKey() string { return filepath.Join(p.cfg.Dir, "service-account.key") }

// SharedSecret returns a secret that only the servers of the cluster have. It seals what they write for each other.
func (p *PKI) SharedSecret() ([]byte, error) {
	raw, err := os.ReadFile(p.ServiceAccountKey())
	if err != nil {
		return nil, fmt.Errorf("read the ServiceAccount key: %w", err)
	}
	return raw, nil
}

// ServiceAccountPublicKey verifies them.
func (p *PKI) ServiceAccountPublicKey() string {
	return filepath.Join(p.cfg.Dir, "service-account.pub")
}

// File is a path in the PKI's own folder.
func (p *PKI) File(name string) string { return filepath.Join(p.cfg.Dir, name) }

// Add issues the certificate of a leaf unless its files hold one as described that is not near its end. Run renews it.
// Adding a leaf with the same CertFile again replaces its description.
func (p *PKI) Add(l Leaf) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := &leaf{Leaf: l}
	if _, err := p.refresh(e, atStart); err != nil {
		return err
	}
	if l.Renewed != nil {
		if err := l.Renewed(); err != nil {
			return err
		}
	}
	p.leaves = slices.DeleteFunc(p.leaves, func(o *leaf) bool { return o.CertFile == l.CertFile })
	p.leaves = append(p.leaves, e)
	p.wake()
	return nil
}

// wake has Run look at the leaves again.
func (p *PKI) wake() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// occasion is why a leaf is looked at.
type occasion int

const (
	atStart   occasion = iota // it is added
	underWay                  // it may be due, or its authority has changed
	onRequest                 // somebody wants a new one
)

// refresh writes the leaf's files where they are missing, broken, not as described or near their end, or where the
// occasion requires it.
func (p *PKI) refresh(l *leaf, why occasion) (renewed bool, err error) {
	ca := p.ca(l.CA)
	if ca == nil {
		return false, fmt.Errorf("certificate %s: no CA %q", l.Name, l.CA)
	}
	key, err := ensureKey(l.KeyFile)
	if err != nil {
		// A leaf's key that cannot be read is replaceable, unlike a CA's.
		if rm := os.Remove(l.KeyFile); rm != nil {
			return false, fmt.Errorf("certificate %s: %w", l.Name, errors.Join(err, rm))
		}
		if key, err = ensureKey(l.KeyFile); err != nil {
			return false, fmt.Errorf("certificate %s: %w", l.Name, err)
		}
	}
	raw, err := os.ReadFile(l.CertFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("certificate %s: %w", l.Name, err)
	}
	chain := ca.chain(l.WithCA)
	cert, err := parseCert(raw)
	good := err == nil && matches(cert, key) && why != onRequest
	if good && l.Steady && why == underWay && (p.serves(l.Leaf, cert, ca.cert) ||
		len(ca.old) > 1 && p.serves(l.Leaf, cert, ca.old[1])) {
		// What is behind it in the file may not be what would be written now; that does no harm.
		l.ends = cert.NotAfter
		return false, nil
	}
	if !good || !p.serves(l.Leaf, cert, ca.cert) {
		crt, err := ca.sign(l.Leaf, key.Public(), p.base().Add(p.lifetime(l.Leaf)))
		if err != nil {
			return false, err
		}
		if cert, err = parseCert(crt); err != nil {
			return false, fmt.Errorf("certificate %s: %w", l.Name, err)
		}
	}
	l.ends = cert.NotAfter
	want := append(encodeCert(cert.Raw), chain...)
	if bytes.Equal(raw, want) {
		return false, nil
	}
	return true, atomicfile.Write(l.CertFile, want, 0o644)
}

// serves reports whether the certificate is as the leaf describes and is neither near its end nor longer valid than it
// should be: that would be one from a time when the clock was ahead.
func (p *PKI) serves(l Leaf, c, by *x509.Certificate) bool {
	usage := x509.ExtKeyUsageClientAuth
	if l.Server {
		usage = x509.ExtKeyUsageServerAuth
	}
	var ips []string
	for _, ip := range c.IPAddresses {
		ips = append(ips, ip.String())
	}
	var want []string
	for _, ip := range l.ips() {
		want = append(want, ip.String())
	}
	now := p.base()
	return c.CheckSignatureFrom(by) == nil && c.Subject.CommonName == l.CommonName &&
		same(c.Subject.Organization, l.Organization) && same(c.DNSNames, l.DNSNames) && same(ips, want) &&
		slices.Contains(c.ExtKeyUsage, usage) &&
		now.Before(p.renewal(l, c.NotAfter)) && c.NotAfter.Before(now.Add(p.lifetime(l)+24*time.Hour))
}

// renewal returns when a leaf with an end is due: when a third of its life remains. A longer life is not possible for
// one that ends with its CA.
func (p *PKI) renewal(l Leaf, ends time.Time) time.Time {
	if !ends.Before(p.ca(l.CA).ends()) {
		return ends
	}
	return ends.Add(-p.lifetime(l) / 3)
}

func (p *PKI) lifetime(l Leaf) time.Duration {
	if l.Lifetime > 0 {
		return l.Lifetime
	}
	return p.cfg.LeafLifetime
}

// Certificates lists the authorities and the leaves with their ends.
func (p *PKI) Certificates() []Certificate {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Certificate
	for _, n := range authorities {
		ca := p.ca(n)
		out = append(out, Certificate{Name: string(n), Subject: ca.cert.Subject.String(), CA: true, Ends: ca.ends()})
	}
	for _, l := range p.leaves {
		c := Certificate{Name: l.Name, Subject: "CN=" + l.CommonName, Ends: l.ends, Renews: p.renewal(l.Leaf, l.ends)}
		if l.err != nil {
			c.Error = l.err.Error()
		}
		out = append(out, c)
	}
	return out
}

// same compares without order.
func same(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}
