package rotation

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/server/pki"
)

// store is a datastore that serves until the test ends.
func store(t *testing.T) *clientv3.Client {
	t.Helper()
	dir := t.TempDir()
	st, err := datastore.Open(t.Context(), datastore.Config{Dir: dir,
		Socket: filepath.Join(dir, "s"), VolatileSocket: filepath.Join(dir, "v"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- st.Run(ctx, func() { close(ready) }) }()
	<-ready
	c, err := datastore.Client(ctx, st)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

// machine is one server, which may be off.
type machine struct {
	*Member
	t    *testing.T
	c    *clientv3.Client
	name string
	dir  string
	p    *pki.PKI
	off  func()
}

// server makes one with the keys of another.
func server(t *testing.T, c *clientv3.Client, name string, from *machine) *machine {
	t.Helper()
	m := &machine{t: t, c: c, name: name, dir: t.TempDir(), off: func() {}}
	if from != nil {
		files, err := from.p.Shared()
		if err != nil {
			t.Fatal(err)
		}
		p, err := pki.Open(pki.Config{Dir: m.dir})
		if err == nil {
			_, err = p.Adopt(files, true)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// load makes a part of what is on the disk, as a process that starts.
func (m *machine) load() {
	m.t.Helper()
	var err error
	if m.p, err = pki.Ensure(pki.Config{Dir: m.dir}); err != nil {
		m.t.Fatal(err)
	}
	m.Member = New(Config{Name: m.name, PKI: m.p, TakenOver: func(*Record) {}, Log: slog.New(slog.DiscardHandler)})
}

// on starts the server; it follows the record until off.
func (m *machine) on() *machine {
	m.t.Helper()
	m.off()
	m.load()
	if _, err := m.Claim(m.t.Context(), m.c, false); err != nil {
		m.t.Fatalf("%s: %v", m.name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for w := m.c.Watch(ctx, Key); ; {
			if _, err := m.Sync(ctx, m.c); err != nil && ctx.Err() == nil {
				m.t.Errorf("%s: %v", m.name, err)
			}
			if _, open := <-w; !open {
				return
			}
		}
	}()
	m.off = func() { cancel(); <-done; m.off = func() {} }
	m.t.Cleanup(func() { m.off() })
	return m
}

func (m *machine) files() pki.Files {
	m.t.Helper()
	f, err := m.p.Shared()
	if err != nil {
		m.t.Fatal(err)
	}
	return f
}

func same(t *testing.T, what string, all ...*machine) {
	t.Helper()
	for _, m := range all[1:] {
		if !m.files().Equal(all[0].files()) {
			t.Errorf("%s: %s and %s have other keys", what, m.name, all[0].name)
		}
	}
}

func anything([]string, []Report) error { return nil }

// waitsFor asks that an error names servers.
func waitsFor(t *testing.T, err error, restart bool, names ...string) {
	t.Helper()
	var lag *lagError
	if !errors.As(err, &lag) || lag.Restart != restart || !slices.Equal(lag.Servers, names) {
		t.Fatalf("got %v, want one that waits for %v", err, names)
	}
}

func TestThreeServersRotate(t *testing.T) {
	c := store(t)
	a := server(t, c, "a", nil).on()
	b, d := server(t, c, "b", a).on(), server(t, c, "d", a).on()
	before := a.files()
	if err := a.Rotate(t.Context(), c, nil, ""); err != nil {
		t.Fatal(err)
	}
	same(t, "begun", a, b, d)
	if under := a.files().Under(); !slices.Equal(under, pki.Rotatable()) {
		t.Errorf("under way are %v", under)
	}
	if string(before["server-ca.key"]) == string(a.files()["server-ca.key"]) ||
		!strings.Contains(string(a.files()["service-account.pub"]), string(before["service-account.pub"])) {
		t.Error("the new ones do not sign, or the old ones are not trusted")
	}
	if err := b.Rotate(t.Context(), c, nil, ""); !errors.Is(err, pki.ErrUnderWay) {
		t.Errorf("begun once more: %v", err)
	}
	_, err := b.Finish(t.Context(), c, nil, anything)
	waitsFor(t, err, true, "a", "b", "d")
	b.on()
	a.on()
	_, err = b.Finish(t.Context(), c, nil, anything)
	waitsFor(t, err, true, "d")
	d.on()
	refused := errors.New("a node")
	if _, err := b.Finish(t.Context(), c, nil, func([]string, []Report) error { return refused }); !errors.Is(err,
		refused) {
		t.Errorf("finished although %v", err)
	}
	done, err := b.Finish(t.Context(), c, []string{"client-ca"}, anything)
	if err != nil || !slices.Equal(done, []string{"client-ca"}) {
		t.Fatal(done, err)
	}
	same(t, "one finished", a, b, d)
	if done, err = d.Finish(t.Context(), c, nil, anything); err != nil || len(done) != 4 {
		t.Fatal(done, err)
	}
	same(t, "settled", a, b, d)
	if under := b.files().Under(); len(under) > 0 ||
		strings.Contains(string(b.files()["service-account.pub"]), string(before["service-account.pub"])) {
		t.Errorf("not settled: %v", under)
	}
	if _, err := a.Finish(t.Context(), c, nil, anything); !errors.Is(err, pki.ErrNotUnderWay) {
		t.Errorf("finished twice: %v", err)
	}
	// The next one begins with the keys of this one.
	if err := d.Rotate(t.Context(), c, []string{"service-account"}, ""); err != nil {
		t.Error(err)
	}
	same(t, "once more", a, b, d)
}

func TestAServerIsAway(t *testing.T) {
	c := store(t)
	a := server(t, c, "a", nil).on()
	b, d := server(t, c, "b", a).on(), server(t, c, "d", a).on()
	brief := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		t.Cleanup(cancel)
		return ctx
	}
	// Away while it is announced: nothing signs anew, and any server goes on with it.
	d.off()
	before := a.files()
	waitsFor(t, a.Rotate(brief(), c, nil, ""), false, "d")
	same(t, "announced", a, b)
	if string(a.files()["server-ca.key"]) != string(before["server-ca.key"]) ||
		len(a.files()["server-ca-next.crt"]) == 0 {
		t.Error("it signs before all trust it")
	}
	if _, err := a.Finish(t.Context(), c, nil, anything); !errors.Is(err, pki.ErrUnderWay) {
		t.Errorf("finished: %v", err)
	}
	if st, err := b.Status(t.Context(), c); err != nil || st.Stage != Announced ||
		!slices.Equal(st.Announced, pki.Rotatable()) || !slices.Equal(st.Behind, []string{"d"}) {
		t.Errorf("%+v, %v", st, err)
	}
	if err := b.Rotate(t.Context(), c, []string{"client-ca"}, ""); !errors.Is(err, pki.ErrUnderWay) {
		t.Errorf("another one: %v", err)
	}
	d.load()
	if changed, err := d.Claim(t.Context(), c, false); err != nil || !changed {
		t.Fatal(changed, err)
	}
	same(t, "announced, back", a, b, d)
	// Away again, with the old ServiceAccount key, while it is begun.
	waitsFor(t, b.Rotate(brief(), c, nil, ""), false, "d")
	same(t, "begun", a, b)
	d.load()
	if changed, err := d.Claim(t.Context(), c, false); err != nil || !changed {
		t.Fatal(changed, err)
	}
	same(t, "begun, back", a, b, d)
	if st, err := a.Status(t.Context(), c); err != nil || st.Stage != Begun || len(st.Announced)+len(st.Behind) > 0 ||
		!slices.Equal(st.Restart, []string{"a", "b"}) {
		t.Errorf("%+v, %v", st, err)
	}
	d.on()
	a.on()
	b.on()
	d.off()
	if _, err := a.Finish(brief(), c, nil, anything); err == nil {
		t.Error("finished without d")
	} else {
		waitsFor(t, err, false, "d")
	}
	d.on()
	same(t, "settled", a, b, d)

	// Given up, and back after all.
	d.off()
	if err := Forget(t.Context(), c, "d"); err != nil {
		t.Fatal(err)
	}
	if err := a.Rotate(t.Context(), c, nil, ""); err != nil {
		t.Fatal(err)
	}
	a.on()
	b.on()
	if _, err := a.Finish(t.Context(), c, nil, anything); err != nil {
		t.Fatal(err)
	}
	d.load()
	if _, err := d.Claim(t.Context(), c, false); !errors.Is(err, ErrSealed) {
		t.Errorf("who has none of the keys: %v", err)
	}
	// By force its keys are the cluster's.
	a.off()
	b.off()
	if changed, err := d.Claim(t.Context(), c, true); err != nil || changed {
		t.Error(changed, err)
	}
	a.load()
	if _, err := a.Claim(t.Context(), c, false); !errors.Is(err, ErrSealed) {
		t.Errorf("the others, then: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	p, err := pki.Open(pki.Config{Dir: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	files, err := p.Shared()
	if err != nil {
		f.Fatal(err)
	}
	raw, err := First(files).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"epoch":1,"keys":{"x":""}}`))
	f.Fuzz(func(_ *testing.T, raw []byte) { _, _ = decode(raw, files) })
}

// TestAStageThatCannotBeTakenOverAtOnce: it is not reported before it is in force, and is taken over by the next look.
func TestAStageThatCannotBeTakenOverAtOnce(t *testing.T) {
	c := store(t)
	one := server(t, c, "one", nil).on()
	two := server(t, c, "two", one)
	two.load()
	told := 0
	two.cfg.TakenOver = func(*Record) { told++ }
	if _, err := two.Claim(t.Context(), c, false); err != nil {
		t.Fatal(err)
	}
	failing := false
	leaf := pki.Leaf{Name: "x", CA: pki.ClientCA, CertFile: two.p.File("x.crt"), KeyFile: two.p.File("x.key"),
		CommonName: "x", Renewed: func() error {
			if failing {
				return errors.New("the disk is full")
			}
			return nil
		}}
	if err := two.p.Add(leaf); err != nil {
		t.Fatal(err)
	}
	failing = true
	rec, err := one.announce(t.Context(), c, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	epoch := func() int64 {
		all, err := two.Reports(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(r Report) bool { return r.Name == "two" })
		return all[i].Epoch
	}
	for range 2 {
		if _, err := two.Sync(t.Context(), c); err == nil || told != 1 || epoch() >= rec.Epoch {
			t.Errorf("told %d times, reports %d of %d, %v", told, epoch(), rec.Epoch, err)
		}
	}
	failing = false
	if _, err := two.Sync(t.Context(), c); err != nil || told != 2 || epoch() != rec.Epoch {
		t.Errorf("when it can be done: told %d times, reports %d of %d, %v", told, epoch(), rec.Epoch, err)
	}
}
