package pki

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/listing"
)

// Files are those of SharedFiles that there are at one stage of a rotation, by name. rotations.json is not among
// them: it is about one server's starts.
type Files map[string][]byte

// Equal reports whether both are the same stage.
func (f Files) Equal(o Files) bool { return maps.EqualFunc(f, o, bytes.Equal) }

// Under are the names of what is being replaced at this stage: the old is trusted beside the new.
func (f Files) Under() []string {
	var out []string
	for _, n := range Rotatable() {
		if n == ServiceAccount && f["service-account-old.pub"] != nil || f[n+"-old.crt"] != nil {
			out = append(out, n)
		}
	}
	return out
}

const noted = "rotations.json"

// Shared reads the present stage.
func (p *PKI) Shared() (Files, error) {
	out := Files{}
	for _, name := range SharedFiles() {
		if name == noted {
			continue
		}
		raw, err := os.ReadFile(p.File(name))
		switch {
		case err == nil:
			out[name] = raw
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("read keys: %w", err)
		}
	}
	return out, nil
}

// Prepare makes what BeginRotation would make and returns it as two stages, for servers that share their keys. On the
// first one, announced, what is new is trusted everywhere and signs nothing; on the second, begun, it signs. Nothing
// changes here: Adopt does that.
func (p *PKI) Prepare(names []string, from string) (announced, begun Files, err error) {
	err = p.elsewhere(func(q *PKI) error {
		now, err := q.Shared()
		if err != nil {
			return err
		}
		if err := q.BeginRotation(names, from); err != nil {
			return err
		}
		if begun, err = q.Shared(); err != nil {
			return err
		}
		announced, err = announce(now, begun)
		return err
	})
	return announced, begun, err
}

// Completed is the stage after FinishRotation, and the names that it finishes. Nothing changes here.
func (p *PKI) Completed(names []string) (files Files, finished []string, err error) {
	err = p.elsewhere(func(q *PKI) error {
		if err := q.noteStart(); err != nil { // whether all servers have been restarted the caller knows
			return err
		}
		if finished, err = q.FinishRotation(names); err != nil {
			return err
		}
		files, err = q.Shared()
		return err
	})
	return files, finished, err
}

// announce is now with what begun trusts besides.
func announce(now, begun Files) (Files, error) {
	out := maps.Clone(now)
	for _, ca := range authorities {
		file := string(ca) + ".crt"
		have, err := parseCerts(now[file])
		if err != nil {
			return nil, fmt.Errorf("read CA %s: %w", file, err)
		}
		all, err := parseCerts(begun[file])
		if err != nil {
			return nil, fmt.Errorf("read CA %s: %w", file, err)
		}
		next := slices.DeleteFunc(all, func(c *x509.Certificate) bool { return slices.ContainsFunc(have, c.Equal) })
		if len(next) > 0 {
			out[string(ca)+"-next.crt"] = encodeCerts(next)
			out[file] = append(slices.Clone(now[file]), encodeCerts(next)...)
		}
	}
	const file = "service-account.pub"
	have := publicKeys(now[file])
	for _, k := range publicKeys(begun[file]) {
		if !slices.ContainsFunc(have, func(o []byte) bool { return bytes.Equal(o, k) }) {
			out["service-account-next.pub"] = append(out["service-account-next.pub"], encodePublic(k)...)
			out[file] = append(slices.Clone(out[file]), encodePublic(k)...)
		}
	}
	return out, nil
}

const stagePrefix = ".rotating-"

// elsewhere has f work on a copy of the files.
func (p *PKI) elsewhere(f func(*PKI) error) (err error) {
	files, err := p.Shared()
	if err != nil {
		return err
	}
	return p.on(files, f)
}

// on has f work on files in a folder of their own.
func (p *PKI) on(files Files, f func(*PKI) error) (err error) {
	dir, err := os.MkdirTemp(p.cfg.Dir, stagePrefix)
	if err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for name, raw := range files {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			return fmt.Errorf("copy keys: %w", err)
		}
	}
	cfg := p.cfg
	cfg.Dir, cfg.Log = dir, nil // what happens there has not happened yet
	q, err := Open(cfg)
	if err != nil {
		return err
	}
	if err := q.noteStart(); err != nil {
		return err
	}
	return f(q)
}

// Adopt takes over a stage from another server: its files replace those that are here, the authorities and the leaves
// follow. It may be interrupted anywhere and called again; a server can start with the state after a crash. starting
// means that nothing uses the certificates yet, so that also those are issued that otherwise wait for a restart.
//
// changed reports that the files were replaced, by this call or by one before that has failed since; with an error
// the stage is not in force yet, and the next call goes on with it.
func (p *PKI) Adopt(files Files, starting bool) (changed bool, err error) {
	have, err := p.Shared()
	if err != nil {
		return p.pending, err
	}
	if !have.Equal(files) {
		if err := p.usable(files); err != nil {
			return false, fmt.Errorf("take over keys: %w", err)
		}
		p.pending = true
		if err := p.replaceAll(have, files); err != nil {
			return false, fmt.Errorf("take over keys: %w", err)
		}
	}
	if !p.pending {
		return false, nil
	}
	why := underWay
	if starting {
		why = atStart
	}
	for _, step := range []func() error{p.load, p.saveRotations, func() error { return p.reissue(why) }} {
		if err := step(); err != nil {
			return true, err
		}
	}
	p.pending = false
	return true, nil
}

// usable finds what is wrong with the files of a stage before anything is replaced by them.
func (p *PKI) usable(files Files) error {
	for name := range files {
		if name == noted || !slices.Contains(SharedFiles(), name) {
			return fmt.Errorf("%q is none of them: the other server must be of another release", name)
		}
	}
	return p.on(files, func(q *PKI) error {
		same, err := q.Shared()
		if err == nil && !same.Equal(files) {
			err = errors.New("they are incomplete")
		}
		return err
	})
}

// DropAnnounced ends the trust in what was announced and does not sign yet: for a server that has no others any more,
// which have the keys of it.
func (p *PKI) DropAnnounced() error {
	files, err := p.Shared()
	if err != nil {
		return err
	}
	dropped := false
	for name := range files {
		if strings.Contains(name, "-next.") {
			dropped = true
			if err := remove(p.File(name)); err != nil {
				return err
			}
		}
	}
	if !dropped {
		return nil
	}
	if err := p.load(); err != nil {
		return err
	}
	return p.reissue(atStart)
}

// replaceAll writes in an order in which a crash leaves a state that loads: what goes with a new key before it, what
// goes with an old key after it.
func (p *PKI) replaceAll(have, files Files) error {
	for _, n := range files.Under() {
		if _, ok := p.readRotations()[n]; !ok {
			if err := p.recordBegin(n); err != nil {
				return err
			}
		}
	}
	class := func(name string) int {
		switch {
		case strings.Contains(name, "-old."):
			return 0
		case strings.HasSuffix(name, ".key"):
			return 1
		}
		return 2
	}
	names := SharedFiles()
	slices.SortStableFunc(names, func(a, b string) int { return class(a) - class(b) })
	for _, name := range names {
		raw, ok := files[name]
		if !ok || bytes.Equal(raw, have[name]) {
			continue
		}
		if p.cut != nil && p.cut() {
			return errCut
		}
		mode := fs.FileMode(0o644)
		if strings.HasSuffix(name, ".key") {
			mode = 0o600
		}
		if err := WriteIfChanged(p.File(name), raw, mode); err != nil {
			return err
		}
	}
	for _, name := range names {
		if _, ok := files[name]; ok || have[name] == nil {
			continue
		}
		if p.cut != nil && p.cut() {
			return errCut
		}
		if err := os.Remove(p.File(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove: %w", err)
		}
	}
	return atomicfile.SyncDir(p.cfg.Dir)
}

// errCut is for tests, which have power fail here.
var errCut = errors.New("cut off")

// removeStages removes what a crash has left of elsewhere.
func removeStages(dir string) error {
	left, err := listing.Match(dir, stagePrefix+"*")
	for _, d := range left {
		err = errors.Join(err, os.RemoveAll(d))
	}
	return err
}
