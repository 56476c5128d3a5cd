package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/certfiles"
)

// ServiceAccount names the key that signs ServiceAccount tokens, where rotations are named.
const ServiceAccount = "service-account"

// Rotatable are the names that a rotation may be given, in the order in which it works.
func Rotatable() []string {
	var out []string
	for _, ca := range authorities {
		out = append(out, string(ca))
	}
	return append(out, ServiceAccount)
}

// SharedFiles are the files of the folder that all servers of a cluster have in common; the others belong to
// one server or follow from these. Who copies them to another server or into a backup takes those that are
// there, and puts them back with their modes before Ensure is called.
func SharedFiles() []string {
	out := []string{"service-account.key", "service-account.pub", "service-account-old.pub", "service-account-next.pub", "rotations.json"}
	for _, ca := range authorities {
		out = append(out, string(ca)+".key", string(ca)+".crt", string(ca)+"-old.crt", string(ca)+"-next.crt")
	}
	return out
}

// Rotation is one that has been begun and not finished: the old is trusted beside the new.
type Rotation struct {
	Name  string    `json:"name"`
	Begun time.Time `json:"begun"`
	// Restarted is when the server was first started after that; zero if it was not yet.
	Restarted time.Time `json:"restarted,omitzero"`
}

// What a rotation can be refused for.
var (
	ErrUnknownName = errors.New("there is no such certificate authority or key")
	ErrUnderWay    = errors.New("a rotation is under way already")
	ErrNotUnderWay = errors.New("no rotation is under way")
	ErrNoRestart   = errors.New("the server has not been restarted since the rotation was begun")
)

// Renew issues leaves anew at once, those of the names or all. Their keys stay, so that no reader finds a
// key and a certificate that do not belong together.
func (p *PKI) Renew(names ...string) ([]Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var known []string
	for _, l := range p.leaves {
		known = append(known, l.Name)
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("there is no certificate %q; there are %s", n, strings.Join(known, ", "))
		}
	}
	var out []Certificate
	var errs []error
	for _, l := range p.leaves {
		if len(names) > 0 && !slices.Contains(names, l.Name) {
			continue
		}
		_, err := p.refresh(l, onRequest)
		if err == nil && l.Renewed != nil {
			err = l.Renewed()
		}
		if l.err = err; err != nil {
			errs = append(errs, fmt.Errorf("renew certificate %s: %w", l.Name, err))
			continue
		}
		p.cfg.Log.Info("renewed certificate as told", "certificate", l.Name, "ends", l.ends)
		out = append(out, Certificate{Name: l.Name, Subject: "CN=" + l.CommonName, Ends: l.ends, Renews: p.renewal(l.Leaf, l.ends)})
	}
	p.wake()
	return out, errors.Join(errs...)
}

// BeginRotation puts new authorities in the place of old ones, and a new ServiceAccount key: all, or those
// named. The old ones stay trusted until FinishRotation. from is a folder with NAME.crt and NAME.key of
// those that a user brings; "" makes them.
//
// Nothing has to be distributed first: the new authority's key is also certified by the old authority, and
// that certificate goes with every leaf. Whoever trusts only the old root follows it there, whoever trusts
// the new one does not need it. So leaves are issued by the new authority at once.
//
// Everything is checked before anything is changed. After an error or a crash the call may be repeated for
// those names that Rotations does not have.
func (p *PKI) BeginRotation(names []string, from string) error {
	names, brought, err := p.chosen(names, from)
	if err != nil {
		return err
	}
	for _, r := range p.Rotations() {
		if slices.Contains(names, r.Name) {
			return fmt.Errorf("%s: %w since %s; finish it first", r.Name, ErrUnderWay, r.Begun.UTC().Format(time.DateTime))
		}
	}
	next := map[CA]*authority{}
	var newSA crypto.Signer
	for _, n := range names {
		pair := brought[n]
		if n == ServiceAccount {
			if newSA = pair.key; newSA == nil {
				if newSA, _, err = newKey(); err != nil {
					return err
				}
			}
			continue
		}
		if next[CA(n)], err = p.successor(CA(n), pair); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	if err := p.distinct(next, newSA); err != nil {
		return err
	}
	for _, n := range names {
		if n == ServiceAccount {
			err = p.replaceServiceAccount(newSA)
		} else {
			err = p.replace(CA(n), next[CA(n)])
		}
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", n, err), p.reissue(underWay))
		}
		p.cfg.Log.Info("rotation begun: the new one signs, the old one stays trusted", "name", n)
	}
	return p.reissue(underWay)
}

// FinishRotation stops trusting what a rotation has replaced: of those named, or of all under way. It
// refuses as long as the server has not been restarted, since some readers look only then.
func (p *PKI) FinishRotation(names []string) ([]string, error) {
	under := map[string]Rotation{}
	for _, r := range p.Rotations() {
		under[r.Name] = r
	}
	for _, n := range names {
		if !slices.Contains(Rotatable(), n) {
			return nil, unknown(n)
		}
	}
	var out []string
	for _, n := range Rotatable() {
		r, ok := under[n]
		if len(names) > 0 && !slices.Contains(names, n) {
			continue
		}
		switch {
		case ok && r.Restarted.IsZero():
			return nil, fmt.Errorf("%s: %w", n, ErrNoRestart)
		case ok:
			out = append(out, n)
		case len(names) > 0:
			return nil, fmt.Errorf("%s: %w", n, ErrNotUnderWay)
		}
	}
	if len(out) == 0 {
		return nil, ErrNotUnderWay
	}
	for _, n := range out {
		var err error
		if n == ServiceAccount {
			err = p.dropOldServiceAccount()
		} else {
			err = p.dropOld(CA(n))
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", n, err), p.reissue(underWay))
		}
		p.cfg.Log.Info("rotation finished: the old one is trusted no more", "name", n)
	}
	return out, errors.Join(p.saveRotations(), p.reissue(underWay))
}

func unknown(name string) error {
	return fmt.Errorf("%w: %q; there are %s", ErrUnknownName, name, strings.Join(Rotatable(), ", "))
}

// Rotations are those under way.
func (p *PKI) Rotations() []Rotation {
	noted := p.readRotations()
	var out []Rotation
	for _, n := range Rotatable() {
		var under bool
		if n == ServiceAccount {
			_, err := os.Stat(p.oldServiceAccountKeys())
			under = err == nil
		} else {
			under = len(p.ca(CA(n)).old) > 0
		}
		if !under {
			continue
		}
		r := noted[n]
		r.Name = n
		out = append(out, r)
	}
	return out
}

// brought is what a user has put into a folder.
type brought struct {
	key   crypto.Signer
	certs []*x509.Certificate
}

// chosen are the names to rotate, in order, and what the user brings for them.
func (p *PKI) chosen(names []string, from string) ([]string, map[string]brought, error) {
	for _, n := range names {
		if !slices.Contains(Rotatable(), n) {
			return nil, nil, unknown(n)
		}
	}
	all := len(names) == 0
	var out []string
	pairs := map[string]brought{}
	for _, n := range Rotatable() {
		if !all && !slices.Contains(names, n) {
			continue
		}
		if from != "" {
			b, err := readBrought(from, n, p.cfg.Now())
			if all && errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", n, err)
			}
			pairs[n] = *b
		}
		out = append(out, n)
	}
	if len(out) == 0 {
		return nil, nil, fmt.Errorf("there is no pair NAME.crt and NAME.key in %s, for a NAME of %s", from, strings.Join(Rotatable(), ", "))
	}
	return out, pairs, nil
}

// shortest is how long a CA that a user brings has to live.
const shortest = 30 * 24 * time.Hour

// readBrought reads and checks a pair.
func readBrought(dir, name string, now time.Time) (*brought, error) {
	raw, err := certfiles.ReadSmall(filepath.Join(dir, name+".key"), maxBrought)
	if err != nil {
		return nil, err
	}
	b := &brought{}
	if b.key, err = parseKey(raw); err != nil {
		return nil, fmt.Errorf("read %s.key: %w", name, err)
	}
	if k, ok := b.key.(*rsa.PrivateKey); ok && k.N.BitLen() < 2048 {
		return nil, fmt.Errorf("%s.key has %d bits; an RSA key needs 2048 or more", name, k.N.BitLen())
	}
	if name == ServiceAccount {
		switch b.key.(type) {
		case *rsa.PrivateKey, *ecdsa.PrivateKey:
			return b, nil
		}
		return nil, fmt.Errorf("%s.key: tokens are signed with RSA or ECDSA keys only", name)
	}
	if raw, err = certfiles.ReadSmall(filepath.Join(dir, name+".crt"), maxBrought); err != nil {
		return nil, err
	}
	if b.certs, err = parseCerts(raw); err != nil {
		return nil, fmt.Errorf("read %s.crt: %w", name, err)
	}
	a, err := newAuthority(b.key, b.certs)
	if err != nil {
		return nil, fmt.Errorf("%s.crt and %s.key: %w", name, name, err)
	}
	for _, c := range append([]*x509.Certificate{a.cert}, a.above...) {
		switch {
		case !c.IsCA || !c.BasicConstraintsValid || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
			return nil, fmt.Errorf("%s.crt: %q may not sign certificates", name, c.Subject)
		case now.Before(c.NotBefore):
			return nil, fmt.Errorf("%s.crt: %q is valid from %s on only", name, c.Subject, c.NotBefore.Format(time.DateTime))
		case c.NotAfter.Before(now.Add(shortest)):
			return nil, fmt.Errorf("%s.crt: %q ends on %s; it has to live 30 days at least", name, c.Subject, c.NotAfter.Format(time.DateOnly))
		}
	}
	return b, nil
}

const maxBrought = 256 << 10

// successor makes the authority that takes over, and makes sure that both sides of the overlap will take
// what it signs.
func (p *PKI) successor(name CA, b brought) (*authority, error) {
	now := p.ca(name)
	var a *authority
	var err error
	if b.key != nil {
		a, err = newAuthority(b.key, b.certs)
	} else {
		a, err = p.makeAuthority(name)
	}
	if err != nil {
		return nil, err
	}
	if p.cfg.Now().After(now.ends()) {
		return a, nil // nobody can be led there by one that has ended
	}
	cross, err := now.certify(a)
	if err != nil {
		return nil, err
	}
	a.old = append([]*x509.Certificate{cross, now.cert}, now.above...)
	return a, a.verify(p.base(), name)
}

// makeAuthority makes a self-signed one. Its name differs from that of the one before: some verifiers look
// an issuer up by name alone.
func (p *PKI) makeAuthority(name CA) (*authority, error) {
	key, _, err := newKey()
	if err != nil {
		return nil, err
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	sum := sha256.Sum256(pub)
	raw, err := selfSign(key, "umiak-"+string(name)+"-"+hex.EncodeToString(sum[:4]), p.base().Add(p.cfg.CALifetime))
	if err != nil {
		return nil, err
	}
	cert, err := parseCert(raw)
	return &authority{cert: cert, key: key}, err
}

// certify gives the key of another authority a certificate from this one.
func (a *authority) certify(other *authority) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	end := a.ends()
	if e := other.ends(); e.Before(end) {
		end = e
	}
	t := &x509.Certificate{
		SerialNumber: serial, RawSubject: other.cert.RawSubject, SubjectKeyId: other.cert.SubjectKeyId,
		NotBefore: notBefore, NotAfter: end.UTC(),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, other.key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("certify the new authority by the old one: %w", err)
	}
	return x509.ParseCertificate(der)
}

// verify signs a leaf and has it verified by each root alone.
func (a *authority) verify(now time.Time, name CA) error {
	key, _, err := newKey()
	if err != nil {
		return err
	}
	raw, err := a.sign(Leaf{CommonName: "test", Server: true, DNSNames: []string{"kubernetes"}}, key.Public(), now.Add(time.Hour))
	if err != nil {
		return err
	}
	leaf, err := parseCert(raw)
	if err != nil {
		return err
	}
	between := x509.NewCertPool()
	between.AppendCertsFromPEM(a.chain(false))
	for _, root := range a.roots() {
		roots := x509.NewCertPool()
		roots.AddCert(root)
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "kubernetes", CurrentTime: now}); err != nil {
			return fmt.Errorf("who trusts %q would not take what the new %s signs (does a certificate limit the length of its path, or names?): %w", root.Subject, name, err)
		}
	}
	return nil
}

// distinct refuses keys that are in use already: an authority is not to be taken for another.
func (p *PKI) distinct(next map[CA]*authority, sa crypto.Signer) error {
	seen := map[string]string{}
	add := func(name string, key crypto.Signer) error {
		pub, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return fmt.Errorf("%s: encode key: %w", name, err)
		}
		if other, ok := seen[string(pub)]; ok {
			return fmt.Errorf("%s has the key of %s: each needs one of its own", name, other)
		}
		seen[string(pub)] = name
		return nil
	}
	for _, n := range authorities {
		if err := add("the present "+string(n), p.ca(n).key); err != nil {
			return err
		}
	}
	for _, n := range authorities {
		if a := next[n]; a != nil {
			if err := add("the new "+string(n), a.key); err != nil {
				return err
			}
		}
	}
	if sa != nil {
		return add("the new "+ServiceAccount, sa)
	}
	return nil
}

// replace writes the old chain, then the new key with its certificates, which is the moment that counts,
// then what follows from it. The old key is needed no more and gone.
func (p *PKI) replace(name CA, a *authority) error {
	path := p.path(name)
	if len(a.old) > 0 {
		if err := atomicfile.Write(path+"-old.crt", encodeCerts(a.old), 0o644); err != nil {
			return err
		}
	}
	if err := p.note(string(name)); err != nil {
		return err
	}
	if err := a.commit(path); err != nil {
		return err
	}
	p.caMu.Lock()
	p.cas[name] = a
	p.caMu.Unlock()
	return a.publish(path)
}

func (p *PKI) dropOld(name CA) error {
	path := p.path(name)
	if err := remove(path + "-old.crt"); err != nil {
		return err
	}
	p.caMu.Lock()
	a := *p.cas[name]
	a.old = nil
	p.cas[name] = &a
	p.caMu.Unlock()
	return a.publish(path)
}

// reissue brings all leaves in line with the authorities, and has their readers told.
func (p *PKI) reissue(why occasion) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, l := range p.leaves {
		_, err := p.refresh(l, why)
		if err == nil && l.Renewed != nil {
			err = l.Renewed()
		}
		if l.err = err; err != nil {
			errs = append(errs, fmt.Errorf("renew certificate %s: %w", l.Name, err))
		}
	}
	p.wake()
	return errors.Join(errs...)
}

// oldServiceAccountKeys are the public keys that go on verifying during a rotation.
func (p *PKI) oldServiceAccountKeys() string { return p.File("service-account-old.pub") }

// publishServiceAccount writes the file of the keys that verify: the signer's and, during a rotation, the
// one before.
func (p *PKI) publishServiceAccount(key crypto.Signer) error {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encode ServiceAccount key: %w", err)
	}
	out := encodePublic(der)
	old, err := os.ReadFile(p.oldServiceAccountKeys())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read ServiceAccount key: %w", err)
	}
	if bytes.Equal(old, out) { // a rotation that was cut off before its key was written
		old = nil
		if err := remove(p.oldServiceAccountKeys()); err != nil {
			return err
		}
	}
	next, err := os.ReadFile(p.File("service-account-next.pub"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read ServiceAccount key: %w", err)
	}
	for _, other := range publicKeys(append(old, next...)) {
		if !bytes.Equal(other, der) {
			out = append(out, encodePublic(other)...)
		}
	}
	return writeIfChanged(p.ServiceAccountPublicKey(), out, 0o644)
}

// publicKeys are those in PEM form, in DER form.
func publicKeys(raw []byte) (out [][]byte) {
	for b, rest := pem.Decode(raw); b != nil; b, rest = pem.Decode(rest) {
		if b.Type == "PUBLIC KEY" {
			out = append(out, b.Bytes)
		}
	}
	return out
}

func (p *PKI) replaceServiceAccount(key crypto.Signer) error {
	pub, err := os.ReadFile(p.ServiceAccountPublicKey())
	if err != nil {
		return fmt.Errorf("read ServiceAccount key: %w", err)
	}
	raw, err := encodeKey(key)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(p.oldServiceAccountKeys(), pub, 0o644); err != nil {
		return err
	}
	if err := p.note(ServiceAccount); err != nil {
		return err
	}
	if err := atomicfile.Write(p.ServiceAccountKey(), raw, 0o600); err != nil {
		return err
	}
	return p.publishServiceAccount(key)
}

func (p *PKI) dropOldServiceAccount() error {
	if err := remove(p.oldServiceAccountKeys()); err != nil {
		return err
	}
	key, err := ensureKey(p.ServiceAccountKey())
	if err != nil {
		return err
	}
	return p.publishServiceAccount(key)
}

func remove(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove: %w", err)
	}
	return atomicfile.SyncDir(filepath.Dir(file))
}

// rotationsFile notes when rotations were begun. Whether one is under way is told by the other files.
func (p *PKI) rotationsFile() string { return p.File("rotations.json") }

func (p *PKI) readRotations() map[string]Rotation {
	out := map[string]Rotation{}
	if raw, err := certfiles.ReadSmall(p.rotationsFile(), maxBrought); err == nil {
		_ = json.Unmarshal(raw, &out) // without the note a rotation waits for one more restart
	}
	return out
}

func (p *PKI) writeRotations(m map[string]Rotation) error {
	if len(m) == 0 {
		if _, err := os.Stat(p.rotationsFile()); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return remove(p.rotationsFile())
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("note rotation: %w", err)
	}
	return writeIfChanged(p.rotationsFile(), raw, 0o600)
}

// note writes down that a rotation begins.
func (p *PKI) note(name string) error {
	m := p.readRotations()
	m[name] = Rotation{Name: name, Begun: p.cfg.Now().UTC()}
	return p.writeRotations(m)
}

// saveRotations forgets those that are not under way.
func (p *PKI) saveRotations() error {
	m := map[string]Rotation{}
	for _, r := range p.Rotations() {
		m[r.Name] = r
	}
	return p.writeRotations(m)
}

// noteStart writes down that the server was started after rotations were begun.
func (p *PKI) noteStart() error {
	m := map[string]Rotation{}
	for _, r := range p.Rotations() {
		now := p.cfg.Now().UTC()
		switch {
		case r.Begun.IsZero():
			r.Begun = now
		case r.Restarted.IsZero():
			r.Restarted = now
		}
		m[r.Name] = r
	}
	return p.writeRotations(m)
}
