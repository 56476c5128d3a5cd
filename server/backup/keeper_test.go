package backup

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/pki"
)

// fake is a datastore with one key.
type fake struct{ revision int64 }

func (f *fake) State(context.Context) (snapshot.State, error) {
	return snapshot.State{Backend: "sqlite", Revision: f.revision}, nil
}

func (f *fake) Export(_ context.Context, _ int64, visit func(*mvccpb.KeyValue) error) error {
	return visit(&mvccpb.KeyValue{Key: []byte("/registry/a"), Value: []byte("v"), CreateRevision: 1,
		ModRevision: f.revision, Version: 1})
}

func keeper(t *testing.T) (*Keeper, *fake) {
	t.Helper()
	dir := t.TempDir()
	d := layout.Dirs{Data: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run")}
	if err := os.MkdirAll(d.Run, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Ensure(pki.Config{Dir: d.ServerPKI()}); err != nil {
		t.Fatal(err)
	}
	f := &fake{revision: 5}
	src := Source{Dirs: d, Node: "m1", Datastore: func() snapshot.Source { return f }}
	return New(Config{Schedule: "0 */12 * * *", Retention: 2}, src, slog.New(slog.DiscardHandler)), f
}

func TestSaveOnDemand(t *testing.T) {
	k, _ := keeper(t)
	e, err := k.Save(t.Context(), "before-upgrade", "secret")
	if err != nil || !e.Encrypted || !strings.HasPrefix(filepath.Base(e.Path), "before-upgrade-m1-") {
		t.Fatalf("%+v, %v", e, err)
	}
	if _, err := snapshot.Read(e.Path, "secret", snapshot.Visitor{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{Scheduled, "../x"} {
		if _, err := k.Save(t.Context(), name, ""); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := k.Run(ctx, func() {}); err != nil { // ends after it has said when the next is due
		t.Fatal(err)
	}
	if s := k.Section(t.Context()); !strings.Contains(s.Rows[0].Detail, "newest of") ||
		!strings.Contains(s.Rows[0].Detail, "next") {
		t.Errorf("status %+v", s)
	}
	k.src.Datastore = func() snapshot.Source { return nil }
	if _, err := k.Save(t.Context(), "", ""); !errors.Is(err, errNotOpen) {
		t.Errorf("before the datastore is open: %v", err)
	}
}

func TestScheduledSnapshotsArePruned(t *testing.T) {
	k, f := keeper(t)
	at := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	k.now = func() time.Time { return at }
	for range 4 {
		k.scheduled(t.Context())
		k.scheduled(t.Context()) // nothing has changed
		f.revision++
		at = at.Add(12 * time.Hour)
	}
	all, err := snapshot.List(k.cfg.Folder(k.src.Dirs))
	if err != nil || len(all) != 2 || all[0].Revision != 8 || all[1].Revision != 7 {
		t.Fatalf("%v, %v", all, err)
	}
}

func TestWhenTheFirstIsDue(t *testing.T) {
	k, _ := keeper(t)
	now := time.Date(2026, 11, 25, 9, 0, 0, 0, time.Local)
	k.now = func() time.Time { return now }
	s, err := parse(k.cfg.Schedule)
	if err != nil {
		t.Fatal(err)
	}
	if got := k.first(s); !got.Equal(now.Add(overdueDelay)) {
		t.Errorf("with none: %v", got)
	}
	k.scheduled(t.Context())
	if got := k.first(s); got.Hour() != 12 {
		t.Errorf("with a new one: %v", got)
	}
	now = now.Add(24 * time.Hour) // off at noon and at midnight
	if got := k.first(s); !got.Equal(now.Add(overdueDelay)) {
		t.Errorf("with one missed: %v", got)
	}
}

func TestValidate(t *testing.T) {
	good := Config{Schedule: "0 */12 * * *", Retention: 5}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string]Config{
		"snapshot-schedule-cron":   {Schedule: "twice a day", Retention: 5},
		"snapshot-retention":       {Schedule: "@daily"},
		"snapshot-dir":             {Schedule: "@daily", Retention: 1, Dir: "here"},
		"snapshot-passphrase-file": {Schedule: "@daily", Retention: 1, PassphraseFile: "here"},
	} {
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want+": ") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
