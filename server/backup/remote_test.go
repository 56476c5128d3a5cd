package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/testing/s3server"
	"github.com/umiak-io/umiak/server/backup/s3"
)

// away is a bucket behind a network that may be away, and counts what it is asked.
type away struct {
	bucket
	err   error
	calls int
}

func (a *away) List(ctx context.Context, suffix string) ([]s3.Object, error) {
	if a.calls++; a.err != nil {
		return nil, a.err
	}
	return a.bucket.List(ctx, suffix)
}

func (a *away) Upload(ctx context.Context, file, info string) error {
	if a.calls++; a.err != nil {
		return a.err
	}
	return a.bucket.Upload(ctx, file, info)
}

// withBucket is a keeper whose clock moves on with each call.
func withBucket(t *testing.T) (*Keeper, *fake, *away) {
	t.Helper()
	k, f := keeper(t)
	k.cfg.S3, k.cfg.S3Unencrypted = s3server.Start(t).Config, true
	b, err := k.cfg.open()
	if err != nil {
		t.Fatal(err)
	}
	a := &away{bucket: b}
	k.openBucket = func(Config) (bucket, error) { return a, nil }
	at := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	k.now = func() time.Time { at = at.Add(time.Minute); return at }
	return k, f, a
}

// places counts the snapshots here and there.
func places(t *testing.T, k *Keeper) (here, there int) {
	t.Helper()
	all, err := k.cfg.List(t.Context(), k.src.Dirs)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if e.Err != nil || e.Keys != 1 || e.Node == "" {
			t.Errorf("%+v", e)
		}
		if slices.Contains(e.Where, Here) {
			here++
		}
		if slices.Contains(e.Where, Bucket) {
			there++
		}
	}
	return here, there
}

func TestBothPlacesAreKeptAlike(t *testing.T) {
	k, f, a := withBucket(t)
	for range 4 {
		k.scheduled(t.Context())
		f.revision++
	}
	if here, there := places(t, k); here != 2 || there != 2 {
		t.Errorf("%d here and %d there, want 2 each", here, there)
	}
	f.revision-- // nothing has changed
	before := a.calls
	k.scheduled(t.Context())
	if a.calls != before {
		t.Errorf("%d requests for nothing", a.calls-before)
	}
	e, err := k.Save(t.Context(), "by-hand", "")
	if err != nil || e.Bucket == "" || e.NotUploaded != "" {
		t.Errorf("%+v, %v", e, err)
	}
	// Another cluster's node of the same name, in the same folder.
	other, _, _ := withBucket(t)
	other.cfg.S3, other.cfg.S3Unencrypted = k.cfg.S3, true
	other.openBucket = k.openBucket
	other.now = func() time.Time { return time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC) }
	other.scheduled(t.Context())
	k.cfg.Retention = 1
	removed, err := k.cfg.Prune(t.Context(), k.src.Dirs, Scheduled, "m1")
	if err != nil || len(removed) != 2 || !strings.HasPrefix(removed[1], "s3://snaps/clusters/pi/scheduled-m1-") {
		t.Errorf("%v, %v", removed, err)
	}
	if here, there := places(t, k); here != 2 || there != 3 {
		t.Errorf("%d here and %d there", here, there)
	}
	if here, there := places(t, other); here != 1 || there != 3 {
		t.Errorf("the other cluster has %d here and %d there", here, there)
	}
}

func TestWhatCouldNotBeUploadedIsLater(t *testing.T) {
	k, f, a := withBucket(t)
	a.err = errors.New("network is unreachable")
	e, err := k.Save(t.Context(), "by-hand", "")
	if err != nil || e.Bucket != "" || !strings.Contains(e.NotUploaded, "unreachable") {
		t.Fatalf("%+v, %v", e, err)
	}
	if _, err := os.Stat(e.Path); err != nil {
		t.Fatal(err)
	}
	f.revision++
	k.scheduled(t.Context())
	row := k.Section(t.Context()).Rows
	if last := row[len(row)-1]; last.Name != "bucket" || last.State != "failing" ||
		!strings.Contains(last.Detail, "unreachable") ||
		!strings.Contains(last.Detail, "s3://snaps/clusters/pi at 127.0.0.1:") {
		t.Errorf("%+v", last)
	}
	p, err := k.cfg.Plan(k.src.Dirs, time.Now())
	if err != nil || len(p.Waiting) != 2 || p.Bucket == "" {
		t.Errorf("%+v, %v", p, err)
	}
	if raw, err := json.Marshal(k.Section(t.Context())); err != nil ||
		strings.Contains(string(raw), k.cfg.S3.SecretKey) {
		t.Errorf("the key is in the status: %s, %v", raw, err)
	}
	// The process ends, somebody removes one of the two, and another process finds the other.
	if err := os.Remove(e.Path); err != nil {
		t.Fatal(err)
	}
	a.err = nil
	again := New(k.cfg, k.src, slog.New(slog.DiscardHandler))
	again.openBucket, again.now = k.openBucket, k.now
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- again.Run(ctx, func() {}) }()
	eventually.Nil(t, "all files to be uploaded", func() error {
		if files, orphans := waiting(k.cfg.Folder(k.src.Dirs)); len(files)+len(orphans) > 0 {
			return fmt.Errorf("still there: %v %v", files, orphans)
		}
		return nil
	})
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if here, there := places(t, k); here != 1 || there != 1 {
		t.Errorf("%d here and %d there", here, there)
	}
	row = again.Section(t.Context()).Rows
	if last := row[len(row)-1]; last.State != "up to date" {
		t.Errorf("%+v", last)
	}
	before := a.calls
	if again.catchUp(t.Context()); a.calls != before {
		t.Errorf("%d requests for nothing", a.calls-before)
	}
}

// endless takes an upload and does not come back.
type endless struct {
	bucket
	begun chan struct{}
}

func (e endless) Upload(ctx context.Context, _, _ string) error {
	close(e.begun)
	<-ctx.Done()
	return context.Cause(ctx)
}

func TestAServerThatStopsDoesNotWaitForTheNetwork(t *testing.T) {
	k, _ := keeper(t)
	k.cfg.S3, k.cfg.S3Unencrypted = s3.Config{Bucket: "snaps"}, true
	k.cfg.Disable = true
	e := endless{begun: make(chan struct{})}
	k.openBucket = func(Config) (bucket, error) { return e, nil }
	ctx, cancel := context.WithCancel(t.Context())
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- k.Run(ctx, func() { close(up) }) }()
	<-up
	go func() { <-e.begun; cancel() }()
	s, err := k.Save(context.WithoutCancel(t.Context()), "", "")
	if err != nil || !strings.Contains(s.NotUploaded, errStopping.Error()) {
		t.Errorf("%+v, %v", s, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestFetchOnAFreshMachine(t *testing.T) {
	k, _, _ := withBucket(t)
	e, err := k.Save(t.Context(), "by-hand", "secret")
	if err != nil || e.NotUploaded != "" {
		t.Fatalf("%+v, %v", e, err)
	}
	name := filepath.Base(e.Path)
	if file, done, err := k.cfg.Fetch(t.Context(), k.src.Dirs, name); err != nil || file != e.Path {
		t.Errorf("the one that is here: %s, %v", file, err)
	} else {
		done()
	}
	dir := t.TempDir()
	fresh := layout.Dirs{Data: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run")}
	file, done, err := k.cfg.Fetch(t.Context(), fresh, name)
	if err != nil {
		t.Fatal(err)
	}
	r, err := snapshot.Restore(t.Context(), file, "secret", fresh, slog.New(slog.DiscardHandler))
	if err != nil || r.Keys != 1 || r.Kept != "" {
		t.Errorf("%+v, %v", r, err)
	}
	done()
	if left, err := filepath.Glob(filepath.Join(fresh.Data, ".*")); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if _, _, err := k.cfg.Fetch(t.Context(), fresh, "none"+snapshot.Suffix); !errors.Is(err, s3.ErrNotFound) {
		t.Errorf("one that is nowhere: %v", err)
	}
	k.cfg.S3 = s3.Config{}
	if _, _, err := k.cfg.Fetch(t.Context(), fresh, name); err == nil ||
		!strings.Contains(err.Error(), "snapshot-s3-bucket") {
		t.Errorf("without a bucket: %v", err)
	}
}

func TestForeignObjectsAreListedAsSuch(t *testing.T) {
	k, _, _ := withBucket(t)
	b, err := k.cfg.open()
	if err != nil {
		t.Fatal(err)
	}
	for name, info := range map[string]string{"copied": "", "odd": "!!", "strange": "bm8="} {
		file := filepath.Join(t.TempDir(), name+snapshot.Suffix)
		if err := errors.Join(os.WriteFile(file, []byte("x"), 0o600), b.Upload(t.Context(), file, info)); err != nil {
			t.Fatal(err)
		}
	}
	all, err := k.cfg.List(t.Context(), k.src.Dirs)
	if err != nil || len(all) != 3 {
		t.Fatalf("%v, %v", all, err)
	}
	for _, e := range all {
		if e.Err == nil || errors.Unwrap(e.Err) == nil || !slices.Equal(e.Where, []string{Bucket}) {
			t.Errorf("%+v", e)
		}
	}
}

func FuzzInfo(f *testing.F) {
	text, err := describe(snapshot.Info{Manifest: snapshot.Manifest{Node: "m1"}, Size: 3})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{text, "", "bm8=", "!"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if e := entry(s3.Object{Name: "a" + snapshot.Suffix, Size: 7, Info: s}, "s3://b"); e.Size != 7 ||
			e.Err != nil && e.Node != "" {
			t.Errorf("%+v", e)
		}
	})
}

// TestOnlyWhatIsEncryptedLeaves: a snapshot holds the keys of the cluster.
func TestOnlyWhatIsEncryptedLeaves(t *testing.T) {
	k, _, _ := withBucket(t)
	k.cfg.S3Unencrypted = false
	e, err := k.Save(t.Context(), "plain", "")
	if err != nil || e.Bucket != "" || !strings.Contains(e.NotUploaded,
		"is not encrypted and is not uploaded: set snapshot-passphrase-file") {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := k.Save(t.Context(), "sealed", "a long passphrase"); err != nil {
		t.Error(err)
	}
	if here, there := places(t, k); here != 2 || there != 1 {
		t.Errorf("%d here and %d there, want 2 and 1", here, there)
	}
}
