package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/datastore/sqlite"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/encryption"
	"github.com/umiak-io/umiak/server/pki"
)

// source is a Source on a SQLite store.
type source struct{ *sqlite.Store }

func (s source) State(context.Context) (snapshot.State, error) {
	rev, _ := s.Revisions()
	return snapshot.State{Backend: "sqlite", Revision: rev, Epoch: s.Epoch()}, nil
}

var quiet = slog.New(slog.DiscardHandler)

type machine struct {
	t    *testing.T
	dirs layout.Dirs
}

func newMachine(t *testing.T) machine {
	dir := t.TempDir()
	m := machine{t, layout.Dirs{Data: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run")}}
	if err := os.Mkdir(m.dirs.Data, 0o755); err != nil {
		t.Fatal(err)
	}
	return m
}

// server creates the files of a server's first start.
func (m machine) server() machine {
	m.t.Helper()
	p, err := pki.Ensure(pki.Config{Dir: m.dirs.ServerPKI()})
	if err == nil {
		err = p.Add(pki.Leaf{Name: "l", CA: pki.ServerCA, CertFile: p.File("apiserver.crt"),
			KeyFile: p.File("apiserver.key"), CommonName: "x", Server: true})
	}
	err = errors.Join(err, encryption.Ensure(m.dirs.EncryptionConfig(), ""),
		pki.WriteIfChanged(filepath.Join(m.dirs.Server(), "token"), []byte("um1.secret\n"), 0o600),
		pki.WriteIfChanged(filepath.Join(m.dirs.Manifests(), "own", "app.yaml"), []byte("kind: ConfigMap\n"), 0o644))
	if err != nil {
		m.t.Fatal(err)
	}
	return m
}

func (m machine) open() source {
	m.t.Helper()
	s, err := sqlite.Open(m.t.Context(), sqlite.Options{Dir: m.dirs.DB(), Log: quiet})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = s.Close() })
	return source{s}
}

func (m machine) save(s snapshot.Source, at time.Time, more ...func(*snapshot.Save)) *snapshot.Entry {
	m.t.Helper()
	c := snapshot.Save{Dir: filepath.Join(m.dirs.Server(), "snapshots"), Name: "scheduled", Server: m.dirs.Server(),
		Source: s, Node: "m1", Version: "v1", Reason: "schedule", Now: at}
	for _, f := range more {
		f(&c)
	}
	e, err := c.Run(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	return e
}

func onlyChanged(c *snapshot.Save) { c.OnlyChanged = true }

func (m machine) read(name string) string {
	b, err := os.ReadFile(filepath.Join(m.dirs.Server(), name))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func fill(t *testing.T, s source, from, n int) {
	t.Helper()
	done := make(chan error, n)
	for i := from; i < from+n; i++ {
		go func() {
			_, err := s.Create(t.Context(), fmt.Sprintf("/registry/configmaps/default/c%06d", i),
				[]byte(strings.Repeat(fmt.Sprint(i), 100)), 0)
			done <- err
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func TestSaveAndRestoreOnAnotherMachine(t *testing.T) {
	a := newMachine(t).server()
	s := a.open()
	const n = 10_000
	fill(t, s, 0, n)
	if _, err := s.Create(t.Context(), "/registry/leases/kube-node-lease/m1", []byte("x"), 3600); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	e := a.save(s, begun)
	took := time.Since(begun)
	if e == nil || e.Keys != n {
		t.Fatalf("%+v", e)
	}
	t.Logf("%d keys, %d bytes, %d in the file, in %v", e.Keys, e.Bytes, e.Size, took)
	if st, _ := os.Stat(e.Path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	want := map[string]string{}
	rev, _ := s.Revisions()
	if err := s.Export(t.Context(), rev,
		func(kv *mvccpb.KeyValue) error { want[string(kv.Key)] = kv.String(); return nil }); err != nil {
		t.Fatal(err)
	}
	delete(want, "/registry/leases/kube-node-lease/m1")

	b := newMachine(t)
	r, err := snapshot.Restore(t.Context(), e.Path, "", b.dirs, quiet)
	if err != nil || r.Kept != "" || r.Keys != n {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, f := range []string{"pki/server-ca.crt", "pki/server-ca.key", "pki/client-ca.key", "pki/etcd-ca.key",
		"pki/request-header-ca.crt", "pki/service-account.key", "encryption-config.yaml", "token",
		"manifests/own/app.yaml"} {
		if a.read(f) != b.read(f) || a.read(f) == "" {
			t.Errorf("%s differs", f)
		}
	}
	if got := b.read("pki/apiserver.key"); !strings.Contains(got, "no such file") {
		t.Error("the key of a leaf certificate is in the snapshot")
	}
	if st, _ := os.Stat(filepath.Join(b.dirs.ServerPKI(), "server-ca.key")); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	to := b.open()
	after, compact := to.Revisions()
	if after < rev+1<<30 || compact != after || to.Epoch() < s.Epoch()+1000 {
		t.Errorf("revision %d after %d, compacted to %d, epoch %d after %d", after, rev, compact, to.Epoch(), s.Epoch())
	}
	if err := to.Export(t.Context(), after, func(kv *mvccpb.KeyValue) error {
		if want[string(kv.Key)] != kv.String() {
			t.Errorf("%s differs", kv.Key)
		}
		delete(want, string(kv.Key))
		return nil
	}); err != nil || len(want) > 0 {
		t.Fatalf("%d are missing, %v", len(want), err)
	}
}

func TestRestoreKeepsWhatWasThere(t *testing.T) {
	a := newMachine(t).server()
	s := a.open()
	fill(t, s, 0, 5)
	e := a.save(s, time.Now(), func(c *snapshot.Save) { c.Passphrase = "p" })
	fill(t, s, 5, 5)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	raw, err := os.ReadFile(e.Path)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2]++
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{bad: snapshot.ErrAltered, e.Path: snapshot.ErrPassphrase} {
		if _, err := snapshot.Restore(t.Context(), path, "wrong", a.dirs, quiet); !errors.Is(err, want) ||
			!strings.Contains(err.Error(), path) {
			t.Fatalf("%s: %v", path, err)
		}
	}
	left, _ := os.ReadDir(a.dirs.Data)
	for _, f := range left {
		if n := f.Name(); n != "server" {
			t.Errorf("a refusal left %s", n)
		}
	}

	also := snapshot.File{Name: "also", Data: []byte("x"), Mode: 0o600}
	r, err := snapshot.Restore(t.Context(), e.Path, "p", a.dirs, quiet, also)
	if err != nil || r.Kept == "" || r.Keys != 5 || a.read("also") != "x" {
		t.Fatalf("%+v, %v, %s", r, err, a.read("also"))
	}
	if _, err := os.Stat(filepath.Join(r.Kept, "db", "state.db")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(e.Path); err != nil {
		t.Errorf("the snapshots are not in the new folder: %v", err)
	}
	if r2, err := snapshot.Restore(t.Context(), e.Path, "p", a.dirs, quiet); err != nil || r2.Kept == r.Kept {
		t.Fatalf("again: %+v, %v", r2, err)
	}
}

// TestRestoreWritesOnlyFilesOfASnapshot: whoever can write a snapshot cannot place other files below the folder of the
// server.
func TestRestoreWritesOnlyFilesOfASnapshot(t *testing.T) {
	a := newMachine(t).server()
	files, err := snapshot.Files(a.dirs.Server())
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := snapshot.Cluster(files)
	if err != nil {
		t.Fatal(err)
	}
	for name, ok := range map[string]bool{
		"": true, "manifests/deep/er.yaml": true, "pki/other-ca.crt": true, "agent-token": true,
		"db/state.db": false, "audit-policy.yaml": false, "kubeconfigs/x.kubeconfig": false, "pki": false,
		"manifests/.hidden": false, "manifests/deep/.hidden": false, "Token": false,
	} {
		path := filepath.Join(t.TempDir(), "s"+snapshot.Suffix)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		w, err := snapshot.NewWriter(f, snapshot.Manifest{Cluster: cluster, Node: "m1", Backend: "sqlite", Revision: 9,
			Epoch: 1}, "")
		if err != nil {
			t.Fatal(err)
		}
		more := slices.Clone(files)
		if name != "" {
			more = append(more, snapshot.File{Name: name, Mode: 0o600, Data: []byte("x")})
		}
		for _, file := range more {
			if err := w.File(file); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		b := newMachine(t)
		_, err = snapshot.Restore(t.Context(), path, "", b.dirs, quiet)
		if (err == nil) != ok || err != nil && (!errors.Is(err, snapshot.ErrAltered) ||
			!strings.Contains(err.Error(), name)) {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := os.Stat(b.dirs.Server()); !ok && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q: refused, and something was restored: %v", name, err)
		}
	}
}

func TestNothingIsWrittenWhenNothingChanged(t *testing.T) {
	m := newMachine(t).server()
	s := m.open()
	at := time.Unix(1.8e9, 0)
	next := func() time.Time { at = at.Add(12 * time.Hour); return at }
	node := func(heartbeat time.Time, label string) []byte {
		n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "m1", Labels: map[string]string{"l": label}},
			Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: "Ready",
				LastHeartbeatTime: metav1.NewTime(heartbeat)}}}}
		raw, err := n.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		u := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "v1", Kind: "Node"}, Raw: raw}
		out, err := u.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte("k8s\x00"), out...)
	}
	const key = "/registry/minions/m1"
	rev, err := s.Create(t.Context(), key, node(at, "a"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if m.save(s, next(), onlyChanged) == nil {
		t.Fatal("the first one was not written")
	}
	if m.save(s, next(), onlyChanged) != nil {
		t.Fatal("written although nothing changed")
	}
	if rev, _, _, err = s.Update(t.Context(), key, node(next(), "a"), rev, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), "/registry/leases/x", nil, 0); err != nil {
		t.Fatal(err)
	}
	if m.save(s, next(), onlyChanged) != nil {
		t.Fatal("written although only a heartbeat changed")
	}
	if _, _, _, err = s.Update(t.Context(), key, node(at, "b"), rev, 0); err != nil {
		t.Fatal(err)
	}
	if m.save(s, next(), onlyChanged) == nil {
		t.Fatal("a label changed")
	}
	if err := os.WriteFile(filepath.Join(m.dirs.Server(), "token"), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if m.save(s, next(), onlyChanged) == nil {
		t.Fatal("a file changed")
	}
	if m.save(s, next(), onlyChanged, func(c *snapshot.Save) { c.Passphrase = "p" }) == nil {
		t.Fatal("it has a passphrase now")
	}
}

func TestListAndPrune(t *testing.T) {
	m := newMachine(t).server()
	s := m.open()
	dir := filepath.Join(m.dirs.Server(), "snapshots")
	if l, err := snapshot.List(dir); err != nil || len(l) != 0 {
		t.Fatalf("%v, %v", l, err)
	}
	at := time.Unix(1.8e9, 0)
	for i := range 4 {
		m.save(s, at.Add(time.Duration(i/2)*time.Hour)) // two in one second
	}
	own := m.save(s, at, func(c *snapshot.Save) { c.Name = "before-upgrade" })
	// The name of a folder must not be taken for a pattern.
	odd := filepath.Join(m.dirs.Server(), "s[n]ap*")
	if err := os.Rename(dir, odd); err != nil {
		t.Fatal(err)
	}
	dir, own.Path = odd, filepath.Join(odd, filepath.Base(own.Path))
	junk := filepath.Join(dir, "scheduled-m1-x"+snapshot.Suffix)
	old := filepath.Join(dir, ".snapshot-1.tmp")
	for _, p := range []string{junk, old} {
		if err := os.WriteFile(p, []byte("UMIAKSN1"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(old, at, at.Add(-1e9*time.Second)); err != nil {
		t.Fatal(err)
	}
	l, err := snapshot.List(dir)
	if err != nil || len(l) != 6 || !errors.Is(l[5].Err, snapshot.ErrTruncated) || l[0].Time.Before(l[4].Time) {
		t.Fatalf("%v, %v", l, err)
	}
	if _, err := snapshot.List(junk); err == nil {
		t.Error("listing something that is not a folder is no error")
	}
	removed, err := snapshot.Prune(dir, "scheduled", "m1", 3)
	if err != nil || len(removed) != 1 || removed[0] != l[3].Path && removed[0] != l[4].Path {
		t.Fatalf("removed %v, %v", removed, err)
	}
	for p, want := range map[string]bool{own.Path: true, junk: true, old: false, removed[0]: false} {
		if _, err := os.Stat(p); (err == nil) != want {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func TestBadNames(t *testing.T) {
	m := newMachine(t).server()
	open := m.open()
	for _, name := range []string{"", "../x", "a/b", ".hidden", strings.Repeat("a", 101)} {
		_, err := snapshot.Save{Dir: t.TempDir(), Name: name, Server: m.dirs.Server(), Source: open,
			Node: "m1"}.Run(t.Context())
		if err == nil {
			t.Errorf("%q was taken", name)
		}
	}
	empty := newMachine(t)
	if _, err := (snapshot.Save{Dir: t.TempDir(), Name: "x", Node: "m1",
		Server: empty.dirs.Server()}).Run(t.Context()); err == nil || !strings.Contains(err.Error(),
		"no server has run here") {
		t.Errorf("an empty machine: %v", err)
	}
}
