package pki

import (
	"bytes"
	"crypto/x509"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// stages are those of a rotation of all or of those named.
func stages(t *testing.T, names ...string) (p *PKI, all []Files) {
	t.Helper()
	p, err := Ensure(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	first, err := p.Shared()
	if err != nil {
		t.Fatal(err)
	}
	announced, begun, err := p.Prepare(names, "")
	if err != nil {
		t.Fatal(err)
	}
	if now, err := p.Shared(); err != nil || !now.Equal(first) {
		t.Fatal("to prepare has changed something", err)
	}
	q, err := Open(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Adopt(begun, true); err != nil {
		t.Fatal(err)
	}
	settled, finished, err := q.Completed(nil)
	if err != nil || len(names) == 0 && !slices.Equal(finished, Rotatable()) {
		t.Fatal(finished, err)
	}
	return p, []Files{first, announced, begun, settled}
}

// at is a server at a stage, with a leaf.
func at(t *testing.T, files Files) (*PKI, Leaf) {
	t.Helper()
	dir := t.TempDir()
	p, err := Open(Config{Dir: dir})
	if err == nil {
		_, err = p.Adopt(files, true)
	}
	l := Leaf{Name: "peer", CA: EtcdCA, CertFile: filepath.Join(dir, "peer.crt"),
		KeyFile: filepath.Join(dir, "peer.key"), CommonName: "x", Server: true, DNSNames: []string{"kubernetes"}}
	if err == nil {
		err = p.Add(l)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p, l
}

// trusts reports whether who has the roots takes the chain in a file.
func trusts(t *testing.T, roots []byte, file string) bool {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := parseCerts(raw)
	if err != nil {
		t.Fatal(err)
	}
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	_, err = certs[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, DNSName: "kubernetes"})
	return err == nil
}

// TestNeighboursTrustEachOther: servers at neighbouring stages take each other's certificates, whichever roots a
// process that was started at a stage before has read.
func TestNeighboursTrustEachOther(t *testing.T) {
	_, all := stages(t)
	var leaves []string
	for _, f := range all {
		_, l := at(t, f)
		leaves = append(leaves, l.CertFile)
	}
	for i := range all {
		for j := range all {
			got := trusts(t, all[i][string(EtcdCA)+".crt"], leaves[j])
			// Roots read before it was begun do for what is begun; after that a restart is asked for.
			want := j-i <= 1 && i-j <= 1 || i <= 2 && j <= 2 || i >= 1 && j == 3
			if want && !got {
				t.Errorf("who trusts the roots of stage %d does not take a certificate of stage %d", i, j)
			}
			if i == 3 && j == 0 && got {
				t.Error("the old root is trusted in the end")
			}
		}
	}
}

// TestAdoptAfterACrash: a server that dies while it takes a stage over starts with what there is, and takes it over
// then.
func TestAdoptAfterACrash(t *testing.T) {
	_, all := stages(t, string(EtcdCA), ServiceAccount)
	for i := range len(all) - 1 {
		from, to := all[i], all[i+1]
		for n, dead := 0, true; dead; n++ {
			p, l := at(t, from)
			count := 0
			p.cut = func() bool { count++; return count > n }
			_, err := p.Adopt(to, false)
			dead = err != nil
			again, err := Ensure(Config{Dir: p.cfg.Dir})
			if err != nil {
				t.Errorf("from stage %d, dead after %d files: %v", i, n, err)
				continue
			}
			if err := again.Add(l); err != nil {
				t.Error(err)
			}
			for _, s := range []Files{from, to} {
				if !trusts(t, s[string(EtcdCA)+".crt"], l.CertFile) {
					t.Errorf("from stage %d, dead after %d files: those of a stage do not take its certificate", i, n)
				}
			}
			if _, err := again.Adopt(to, true); err != nil {
				t.Errorf("from stage %d, dead after %d files: %v", i, n, err)
			}
			if now, err := again.Shared(); err != nil || !now.Equal(to) {
				t.Errorf("from stage %d, dead after %d files: not taken over, %v; %v, want %v", i, n, err,
					slices.Sorted(maps.Keys(now)), slices.Sorted(maps.Keys(to)))
			}
		}
	}
}

// TestAdoptGoesOn: a stage whose files are in place counts as taken over only when all follows from them.
func TestAdoptGoesOn(t *testing.T) {
	_, all := stages(t)
	for what, inTheWay := range map[string]string{
		"an authority's file": "client-ca-signer.crt",
		"the notes":           noted,
		"a leaf":              "",
	} {
		p, l := at(t, all[1])
		failing, told := true, 0
		l.Name, l.CertFile, l.KeyFile = "other", p.File("other.crt"), p.File("other.key")
		l.Renewed = func() error {
			if told++; failing && inTheWay == "" && told > 1 {
				return errors.New("the disk is full")
			}
			return nil
		}
		if err := p.Add(l); err != nil {
			t.Fatal(err)
		}
		to := all[2]
		if inTheWay == noted { // it is to go with the end of the rotation
			if _, err := p.Adopt(all[2], false); err != nil {
				t.Fatal(err)
			}
			to = all[3]
		}
		if inTheWay != "" {
			file := p.File(inTheWay)
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(file, "x"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if changed, err := p.Adopt(to, false); err == nil || !changed {
				t.Errorf("%s: changed %v, %v", what, changed, err)
			}
		}
		failing = false
		if inTheWay != "" {
			if err := os.RemoveAll(p.File(inTheWay)); err != nil {
				t.Fatal(err)
			}
		}
		before := told
		if changed, err := p.Adopt(to, false); err != nil || !changed || told == before {
			t.Errorf("%s, when it can be done: changed %v, told %d times, %v", what, changed, told-before, err)
		}
		if !bytes.Equal(p.CAPEM(ClientCA), to["client-ca.crt"]) || !trusts(t, to["etcd-ca.crt"], l.CertFile) {
			t.Errorf("%s: the stage is not in force", what)
		}
		if changed, err := p.Adopt(to, false); err != nil || changed {
			t.Errorf("%s, once more: changed %v, %v", what, changed, err)
		}
	}
}

func TestDropAnnounced(t *testing.T) {
	_, all := stages(t)
	for i, want := range []int{0, 0, 2, 3} {
		p, _ := at(t, all[i])
		if err := p.DropAnnounced(); err != nil {
			t.Error(err)
		}
		if now, err := p.Shared(); err != nil || !now.Equal(all[want]) {
			t.Errorf("stage %d is not stage %d then, %v", i, want, err)
		}
	}
}

func TestAdoptRefuses(t *testing.T) {
	p, all := stages(t)
	begun := all[2]
	with := func(f func(Files)) Files {
		out := maps.Clone(begun)
		f(out)
		return out
	}
	for what, files := range map[string]Files{
		"a path":              with(func(f Files) { f["../x"] = []byte("x") }),
		"a key that is gone":  with(func(f Files) { delete(f, "client-ca.key") }),
		"what is no key":      with(func(f Files) { f["client-ca.key"] = []byte("x") }),
		"another one's key":   with(func(f Files) { f["client-ca.key"] = all[0]["client-ca.key"] }),
		"no ServiceAccount":   with(func(f Files) { delete(f, "service-account.key") }),
		"roots of nobody":     with(func(f Files) { f["etcd-ca.crt"] = f["client-ca.crt"] }),
		"notes of one server": with(func(f Files) { f[noted] = []byte("{}") }),
	} {
		if _, err := p.Adopt(files, false); err == nil || !strings.Contains(err.Error(), "take over keys") {
			t.Errorf("%s: %v", what, err)
		}
		if now, err := p.Shared(); err != nil || !now.Equal(all[0]) {
			t.Errorf("%s: something has changed", what)
		}
	}
}
