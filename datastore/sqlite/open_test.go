package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// open opens a store that ends with the test.
func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := tryOpen(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tryOpen(t testing.TB, dir string) (*Store, error) {
	t.Helper()
	s, err := Open(context.Background(), Options{Dir: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err == nil {
		t.Cleanup(func() { _ = s.Close() })
	}
	return s, err
}

// run runs the background work of the store until the test ends.
func run(t testing.TB, s *Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		s.Run(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func put(t testing.TB, s *Store, key, value string) int64 {
	t.Helper()
	rev, err := s.Create(t.Context(), key, []byte(value), 0)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// tmpfs mounts a small file system.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("umiak-test", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func TestPragmas(t *testing.T) {
	s := open(t, t.TempDir())
	err := s.writer.do(t.Context(), func(ctx context.Context, c *sql.Conn) error {
		for name, want := range map[string]string{"synchronous": "2", "journal_mode": "wal", "auto_vacuum": "2",
			"journal_size_limit": fmt.Sprint(journalLimit), "mmap_size": "0",
			"application_id": fmt.Sprint(applicationID)} {
			var got string
			if err := c.QueryRowContext(ctx, "PRAGMA "+name).Scan(&got); err != nil && !errors.Is(err, sql.ErrNoRows) ||
				got != want && name != "mmap_size" {
				t.Errorf("%s is %q, want %q (%v)", name, got, want, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.readers.Exec("DELETE FROM log"); err == nil {
		t.Error("a reader can write")
	}
}

func TestSecondOpener(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if _, err := tryOpen(t, dir); !errors.Is(err, ErrLocked) {
		t.Fatalf("second opener: %v", err)
	}
	put(t, s, "/a", "1") // and the first is unharmed
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
}

func TestNewerAndForeignFilesAreLeftAlone(t *testing.T) {
	for name, c := range map[string]struct {
		change func(b []byte)
		want   error
	}{
		"newer":   {func(b []byte) { binary.BigEndian.PutUint32(b[60:], schemaVersion+1) }, ErrNewer},
		"foreign": {func(b []byte) { binary.BigEndian.PutUint32(b[68:], 0) }, ErrForeign},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			put(t, s, "/a", "1")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "state.db")
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			c.change(b)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := tryOpen(t, dir); !errors.Is(err, c.want) {
				t.Fatalf("got %v", err)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(b, after) {
				t.Fatal("the file was changed")
			}
		})
	}
}

func TestReadOnlyFileSystem(t *testing.T) {
	for _, existing := range []bool{false, true} {
		t.Run(fmt.Sprintf("existing=%v", existing), func(t *testing.T) {
			dir := tmpfs(t, "16m")
			if existing {
				s := open(t, dir)
				put(t, s, "/a", "1")
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
			_, err := tryOpen(t, dir)
			if !errors.Is(err, ErrReadOnly) {
				t.Fatalf("got %v", err)
			}
			t.Log(err)
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT, ""); err != nil {
				t.Fatal(err)
			}
			s := open(t, dir)
			if _, kv, err := s.Get(t.Context(), "/a", 0, false); err != nil || (kv != nil) != existing {
				t.Fatalf("afterwards: %v, %v", kv, err)
			}
		})
	}
}

// fill uses all free space and returns a function that frees it.
func fill(t *testing.T, dir string) func() {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for block := 1 << 16; block >= 4096; block /= 2 {
		for err == nil {
			_, err = f.Write(make([]byte, block))
		}
		err = nil
	}
	_ = f.Close()
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFullDiskWhileRunning(t *testing.T) {
	dir := tmpfs(t, "16m")
	var failing atomic.Bool
	s, err := Open(context.Background(), Options{Dir: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Failing: failing.Store})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	run(t, s)
	acked := map[string]bool{}
	for i := range 50 {
		key := fmt.Sprintf("/before/%d", i)
		put(t, s, key, strings.Repeat("x", 4000))
		acked[key] = true
	}
	free := fill(t, dir)
	var failed error
	for i := 0; failed == nil && i < 10000; i++ {
		key := fmt.Sprintf("/full/%d", i)
		before, _ := s.CurrentRevision(t.Context())
		rev, err := s.Create(t.Context(), key, bytes.Repeat([]byte("y"), 4000), 0)
		if failed = err; err == nil {
			acked[key] = true
		} else if after, _ := s.CurrentRevision(t.Context()); after != before || rev != before {
			t.Fatalf("a write that failed moved the revision from %d to %d", before, after)
		}
	}
	if status.Code(failed) != codes.ResourceExhausted || !strings.Contains(failed.Error(), ErrFull.Error()) {
		t.Fatalf("the disk is full and the error is %v", failed)
	}
	t.Log(failed)
	if !failing.Load() {
		t.Error("Failing was not called")
	}
	// Neither of these may look like a conflict or like success.
	if _, _, ok, err := s.Update(t.Context(), "/before/1", bytes.Repeat([]byte("z"), 100000), 3, 0); ok || err == nil {
		t.Fatalf("update: %v, %v", ok, err)
	}
	check := func(when string) {
		t.Helper()
		_, kvs, err := s.List(t.Context(), "/", "0", 0, 0, false)
		if err != nil || len(kvs) != len(acked) {
			t.Fatalf("%s: %d of %d keys, %v", when, len(kvs), len(acked), err)
		}
	}
	check("while full")
	// A small write may fit into the existing files. That does not make the store healthy.
	if _, err := s.Create(t.Context(), "/small", []byte("x"), 0); err == nil {
		acked["/small"] = true
	}
	for range 2 {
		s.Retry(t.Context())
		if s.Status().LastError == "" {
			t.Fatal("the status does not say so")
		}
	}
	free()
	s.Retry(t.Context()) // the status is right although nobody writes
	if e := s.Status().LastError; e != "" {
		t.Fatalf("the status still says %s", e)
	}
	if failing.Load() {
		t.Error("Failing was not called when writes work again")
	}
	put(t, s, "/after", "x")
	acked["/after"] = true
	check("with room again")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	check("opened again")
}

func TestFullDiskAtOpen(t *testing.T) {
	for _, existing := range []bool{false, true} {
		t.Run(fmt.Sprintf("existing=%v", existing), func(t *testing.T) {
			dir := tmpfs(t, "8m")
			if existing {
				s := open(t, dir)
				put(t, s, "/a", "1")
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			free := fill(t, dir)
			_, err := tryOpen(t, dir)
			if !errors.Is(err, ErrFull) {
				t.Fatalf("got %v", err)
			}
			t.Log(err)
			free()
			s := open(t, dir)
			if _, kv, err := s.Get(t.Context(), "/a", 0, false); err != nil || (kv != nil) != existing {
				t.Fatalf("afterwards: %v, %v", kv, err)
			}
		})
	}
}

// damagedStore creates a file of 2,000 keys, some of them updated or deleted, and closes it. The caller damages it.
func damagedStore(t *testing.T) (dir string, keys map[string]string) {
	t.Helper()
	dir = t.TempDir()
	s, err := Open(t.Context(), Options{Dir: dir, Log: slog.New(slog.DiscardHandler), synchronous: "OFF"})
	if err != nil {
		t.Fatal(err)
	}
	keys = map[string]string{}
	for i := range 2000 {
		key, value := fmt.Sprintf("/registry/%04d", i), strings.Repeat(fmt.Sprint(i), 200)
		rev := put(t, s, key, value)
		keys[key] = value
		switch i % 10 {
		case 3:
			if _, _, ok, err := s.Update(t.Context(), key, []byte("new"), rev, 0); !ok {
				t.Fatal(err)
			}
			keys[key] = "new"
		case 4:
			if _, _, ok, err := s.Delete(t.Context(), key, rev); !ok {
				t.Fatal(err)
			}
			delete(keys, key)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, keys
}

func TestDamagedPages(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"one page zeroed": func(b []byte) []byte { clear(b[100*4096 : 101*4096]); return b },
		"garbage in three pages": func(b []byte) []byte {
			copy(b[200*4096:203*4096], bytes.Repeat([]byte("rubbish!"), 4096))
			return b
		},
		"one bit":                   func(b []byte) []byte { b[150*4096+3000] ^= 4; return b },
		"cut short by a tenth":      func(b []byte) []byte { return b[:len(b)*9/10/4096*4096] },
		"cut in the middle of page": func(b []byte) []byte { return b[:len(b)-5000] },
	} {
		t.Run(name, func(t *testing.T) {
			dir, keys := damagedStore(t)
			path := filepath.Join(dir, "state.db")
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			h, err := parseHeader(b)
			if err != nil || h.pageSize != 4096 {
				t.Fatal(h, err)
			}
			b = damage(b)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			s := open(t, dir)
			rep := s.Status().Recovery
			if rep == nil {
				t.Fatal("the damage was not found")
			}
			if kept, err := os.ReadFile(filepath.Join(rep.Kept, "state.db")); err != nil || !bytes.Equal(kept, b) {
				t.Fatalf("the damaged file was not kept as it was: %v", err)
			}
			lost := 0
			_, kvs, err := s.List(t.Context(), "/registry/", "/registry0", 0, 0, false)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for _, kv := range kvs {
				got[kv.Key] = string(kv.Value)
				if want, ok := keys[kv.Key]; !ok {
					t.Errorf("the deleted key %s is back", kv.Key)
				} else if string(kv.Value) != want && !strings.Contains(strings.Join(rep.Lost, " "), kv.Key) {
					t.Errorf("%s has an old value and is not reported", kv.Key)
				}
			}
			for key := range keys {
				if _, ok := got[key]; !ok {
					lost++
					if !strings.Contains(strings.Join(rep.Lost, " "), key) && len(rep.Lost) < maxNamed &&
						rep.Uncertain == "" {
						t.Errorf("%s is lost and not reported", key)
					}
				}
			}
			if lost > len(keys)/5 {
				t.Errorf("%d of %d keys lost", lost, len(keys))
			}
			t.Logf("%s: %d of %d keys lost; %d rows kept, %d lost; %s", rep.Reason, lost, len(keys), rep.Rows,
				rep.LostRows, rep.Uncertain)
			// Clients that saw revisions from before list anew.
			if wr := s.Watch(t.Context(), 2000); wr.CompactRevision == 0 {
				t.Error("a watch from before the damage goes on")
			}
			put(t, s, "/new", "x")
			run(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir)
			if rep := s.Status().Recovery; rep == nil {
				t.Error("the report is gone after the next start")
			}
		})
	}
}

func TestBeyondRepair(t *testing.T) {
	for name, b := range map[string][]byte{"empty": {}, "garbage": bytes.Repeat([]byte("garbage "), 10000)} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "state.db")
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 { // it must not look like a new cluster the second time
				_, err := tryOpen(t, dir)
				if !errors.Is(err, ErrDamaged) {
					t.Fatalf("got %v", err)
				}
				if after, _ := os.ReadFile(path); !bytes.Equal(after, b) {
					t.Fatal("the file was changed")
				}
			}
		})
	}
}

// TestReportThatCannotBeRead: the newest report that can be read counts, and the error names the others.
func TestReportThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	if r, err := lastRecovery(dir); r != nil || err != nil {
		t.Errorf("without a recovery: %+v, %v", r, err)
	}
	for name, text := range map[string]string{"broken-1": `{"reason":"first"}`, "broken-2": `{"reason":`} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "report.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, err := lastRecovery(dir)
	if r == nil || r.Reason != "first" || err == nil || !strings.Contains(err.Error(), "broken-2/report.json") ||
		strings.Contains(err.Error(), "broken-1") {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestRecoveryIsFinished stops a recovery between its steps.
func TestRecoveryIsFinished(t *testing.T) {
	for steps := range 4 {
		t.Run(fmt.Sprint(steps), func(t *testing.T) {
			dir, keys := damagedStore(t)
			path := filepath.Join(dir, "state.db")
			if err := os.WriteFile(path+"-wal", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := salvage(t.Context(), path, path+".recovered", &Recovery{}); err != nil {
				t.Fatal(err)
			}
			kept, err := keepDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for i, move := range []func() error{
				func() error { return os.Rename(path+"-wal", filepath.Join(kept, "state.db-wal")) },
				func() error { return os.Rename(path, filepath.Join(kept, "state.db")) },
				func() error { return os.Rename(path+".recovered", path) },
			} {
				if i < steps {
					if err := move(); err != nil && !errors.Is(err, os.ErrNotExist) {
						t.Fatal(err)
					}
				}
			}
			s := open(t, dir)
			if _, n, err := s.Count(t.Context(), "/registry/", "/registry0", 0); err != nil || n != int64(len(keys)) {
				t.Fatalf("%d of %d keys, %v", n, len(keys), err)
			}
			if _, err := os.Stat(filepath.Join(kept, "state.db")); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("file missing", func(t *testing.T) {
		dir, _ := damagedStore(t)
		kept, err := keepDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "state.db"), filepath.Join(kept, "state.db")); err != nil {
			t.Fatal(err)
		}
		if _, err := tryOpen(t, dir); !errors.Is(err, ErrDamaged) {
			t.Fatalf("started empty: %v", err)
		}
	})
}

func TestWALDamagedInTheMiddle(t *testing.T) {
	src := t.TempDir()
	s := open(t, src)
	var revs []int64
	for i := range 20 {
		revs = append(revs, put(t, s, fmt.Sprintf("/k/%02d", i), strings.Repeat("x", 3000)))
	}
	wal, err := os.ReadFile(s.path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	db, err := os.ReadFile(s.path) // not through SQLite's descriptor, and the store is not used again
	if err != nil {
		t.Fatal(err)
	}
	info, err := parseWAL(bytes.NewReader(wal))
	if err != nil || info.Frames*(4096+24)+32 != len(wal) || info.Behind != 0 {
		t.Fatalf("%d bytes: %+v, %v", len(wal), info, err)
	}
	for name, c := range map[string]struct {
		at      int // from the end
		damaged bool
	}{"tail": {100, false}, "middle": {len(wal) / 2, true}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			bad := bytes.Clone(wal)
			bad[len(bad)-c.at] ^= 1
			for suffix, b := range map[string][]byte{"": db, "-wal": bad} {
				if err := os.WriteFile(filepath.Join(dir, "state.db"+suffix), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s := open(t, dir)
			rep := s.Status().Recovery
			if (rep != nil) != c.damaged {
				t.Fatalf("report %+v", rep)
			}
			current, compact := s.Revisions()
			if !c.damaged {
				if current < revs[len(revs)-2] {
					t.Fatalf("at %d", current)
				}
				return
			}
			if current <= revs[len(revs)-1] || compact <= revs[len(revs)-1] {
				t.Fatalf("revisions that clients have seen are given out again: %d, compact %d", current, compact)
			}
			if kept, err := os.ReadFile(filepath.Join(rep.Kept, "state.db-wal")); err != nil ||
				!bytes.Equal(kept, bad) {
				t.Fatalf("the log was not kept: %v", err)
			}
			put(t, s, "/new", "x")
		})
	}
}

func TestDamagedRowIsNotServed(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, "/good", "1")
	rev := put(t, s, "/bad", "2")
	if err := s.writer.do(t.Context(), func(ctx context.Context, c *sql.Conn) error {
		_, err := c.ExecContext(ctx, `UPDATE log SET value = 'x' WHERE rev = ?`, rev)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Get(t.Context(), "/bad", 0, false); status.Code(err) != codes.DataLoss {
		t.Fatalf("got %v", err)
	}
	if _, kv, err := s.Get(t.Context(), "/good", 0, false); err != nil || string(kv.Value) != "1" {
		t.Fatalf("got %v, %v", kv, err)
	}
}

func TestEpochGrows(t *testing.T) {
	dir := t.TempDir()
	last := int64(0)
	for range 3 {
		s := open(t, dir)
		if s.Epoch() <= last {
			t.Fatalf("epoch %d after %d", s.Epoch(), last)
		}
		last = s.Epoch()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLeasesSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	rev, err := s.Create(t.Context(), "/l/a", []byte("x"), 3600)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, ok, err := s.Update(t.Context(), "/l/a", []byte("y"), rev, 1); !ok {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	w := s.Watch(t.Context(), 0)
	run(t, s)
	for {
		select {
		case b := <-w.Eventc:
			if len(b.Events) > 0 && b.Events[0].Delete {
				return
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the key does not expire")
		}
	}
}

func TestClosedStoreSaysSo(t *testing.T) {
	s := open(t, t.TempDir())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), "/a", nil, 0); err == nil || errors.Is(err, server.ErrKeyExists) {
		t.Fatalf("got %v", err)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte("SQLite format 3\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := parseHeader(b); err == nil && (h.pageSize < 512 || h.pageSize > 65536) {
			t.Fatal(h)
		}
	})
}

func FuzzWAL(f *testing.F) {
	dir := f.TempDir()
	s := open(f, dir)
	if _, err := s.Create(context.Background(), "/a", []byte("x"), 0); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(s.path + "-wal")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:50])
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := parseWAL(bytes.NewReader(b))
		if err != nil || info.Frames+info.Behind > len(b)/(512+24) {
			t.Fatal(info, err)
		}
	})
}
