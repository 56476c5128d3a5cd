package pki

import (
	"crypto"
	"encoding/json"
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
	out := []string{"service-account.key", "service-account.pub", "service-account-old.pub", "service-account-next.pub",
		"rotations.json"}
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

// Renew issues leaves again at once, those of the names or all. Their keys stay, so that no reader finds a key and a
// certificate that do not belong together.
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
		out = append(out, Certificate{Name: l.Name, Subject: "CN=" + l.CommonName, Ends: l.ends,
			Renews: p.renewal(l.Leaf, l.ends)})
	}
	p.wake()
	return out, errors.Join(errs...)
}

// BeginRotation puts new authorities in the place of old ones, and a new ServiceAccount key: all, or those
// named. The old ones stay trusted until FinishRotation. from is a folder with NAME.crt and NAME.key of
// those that a user brings; "" makes them.
//
// Nothing has to be distributed first: the new authority's key is also certified by the old authority, and
// that certificate goes with every leaf. Clients that trust only the old root follow it there, clients that trust the
// new one do not need it. So leaves are issued by the new authority at once.
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
			return fmt.Errorf("%s: %w since %s; finish it first", r.Name, ErrUnderWay,
				r.Begun.UTC().Format(time.DateTime))
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

// replace writes the old chain, then the new key with its certificates, which is the moment that counts,
// then what follows from it. The old key is needed no more and gone.
func (p *PKI) replace(name CA, a *authority) error {
	path := p.path(name)
	if len(a.old) > 0 {
		if err := atomicfile.Write(path+"-old.crt", encodeCerts(a.old), 0o644); err != nil {
			return err
		}
	}
	if err := p.recordBegin(string(name)); err != nil {
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

// reissue issues all leaves that do not match the authorities, and calls their Renewed.
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

func remove(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove: %w", err)
	}
	return atomicfile.SyncDir(filepath.Dir(file))
}

// rotationsFile returns the file with the times at which rotations began. Whether one is under way follows from the
// other files.
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
	return WriteIfChanged(p.rotationsFile(), raw, 0o600)
}

// recordBegin stores that a rotation begins.
func (p *PKI) recordBegin(name string) error {
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
