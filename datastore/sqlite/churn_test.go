package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/umiak-io/umiak/internal/testing/eventually"
)

// waitSwept waits until all compacted rows are removed and the file is shrunk.
func waitSwept(t *testing.T, s *Store) {
	t.Helper()
	eventually.Within(t, 2*time.Minute, "all compacted rows to be removed", func() error {
		if swept, compact := s.swept.Load(), s.compact.Load(); swept < compact {
			return fmt.Errorf("removed up to %d of %d", swept, compact)
		}
		return nil
	})
	if err := s.shrink(t.Context()); err != nil { // at the latest now, also if the sweeper is at it
		t.Fatal(err)
	}
}

// soaks reports whether tests run in their long form, as for `scripts/soak datastore`.
func soaks() bool { return os.Getenv("UMIAK_SOAK") != "" }

// TestChurn rewrites keys with readers that overlap without a gap. Ten minutes of a busy cluster at a
// hundred writes a second are 60,000 writes and two compactions; the long form has more of both.
func TestChurn(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	s := open(t, t.TempDir())
	run(t, s)
	const keys, writers = 200, 32
	rounds := 40
	if soaks() {
		rounds = 300
	}
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 3 {
		readers.Add(1)
		go func() {
			defer readers.Done()
			for ctx.Err() == nil {
				_, _, _ = s.List(ctx, "/k/", "/k0", 50, 0, false)
			}
		}()
	}
	// One reader that reads a list very slowly.
	slow := s.ListStream(ctx, "/k/", "/k0", 0, 0, false)
	go func() {
		for range slow.KVc {
			time.Sleep(50 * time.Millisecond)
		}
	}()
	var maxWAL, maxFile int64
	value := strings.Repeat("v", 2000)
	for round := range rounds {
		var wg sync.WaitGroup
		for w := range writers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for k := w; k < keys; k += writers {
					key := fmt.Sprintf("/k/%04d", k)
					_, kv, err := s.Get(ctx, key, 0, true)
					if err != nil {
						t.Error(err)
						return
					}
					if kv == nil {
						if _, err = s.Create(ctx, key, []byte(value), 0); err != nil {
							t.Error(err)
						}
					} else if _, _, _, err = s.Update(ctx, key, []byte(value), kv.ModRevision, 0); err != nil {
						t.Error(err)
					}
				}
			}()
		}
		wg.Wait()
		if round%10 == 9 {
			if _, err := s.Compact(ctx, s.current.Load()-100); err != nil {
				t.Fatal(err)
			}
		}
		file, wal := s.sizes()
		maxWAL, maxFile = max(maxWAL, wal), max(maxFile, file)
	}
	cancel()
	readers.Wait()
	if _, err := s.Compact(t.Context(), s.current.Load()); err != nil {
		t.Fatal(err)
	}
	waitSwept(t, s)
	file, wal := s.sizes()
	t.Logf("%d writes of 2 kB: file at most %d kB, at the end %d kB; write-ahead log at most %d kB, at the end %d kB",
		keys*rounds, maxFile>>10, file>>10, maxWAL>>10, wal>>10)
	if limit := int64(walLimit + 8<<20); maxWAL > limit { // one batch may go over
		t.Errorf("the write-ahead log grew to %d bytes", maxWAL)
	}
	if maxFile > 64<<20 {
		t.Errorf("the file grew to %d bytes", maxFile)
	}
	if _, n, err := s.Count(t.Context(), "/k/", "/k0", 0); n != keys || err != nil {
		t.Errorf("%d keys, %v", n, err)
	}
}

// TestCatchUp compacts old revisions, a million in the long form, with stops in between, while writes go on.
func TestCatchUp(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	const keys = 1000
	old := int64(100_000)
	if soaks() {
		old = 1_000_000
	}
	dir := t.TempDir()
	s := open(t, dir)
	err := s.writer.do(t.Context(), func(ctx context.Context, c *sql.Conn) error {
		if _, err := c.ExecContext(ctx, "BEGIN"); err != nil {
			return err
		}
		value := []byte(strings.Repeat("x", 100))
		for i := range old {
			r := row{rev: i + 2, key: fmt.Appendf(nil, "/k/%04d", i%keys), version: 1, value: value}
			r.create = r.rev
			if i >= keys {
				r.create, r.prev = i%keys+2, r.rev-keys
			}
			if _, err := s.writer.insert.ExecContext(ctx, r.rev, r.key, r.create, r.prev, r.version, 0, 0, r.checksum(),
				r.value); err != nil {
				return err
			}
		}
		_, err := c.ExecContext(ctx, "COMMIT")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	s = open(t, dir)
	full, _ := s.sizes()
	t.Logf("opened %d MB in %v", full>>20, time.Since(begun).Round(time.Millisecond))
	if _, err := s.Compact(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	// Two short runs: the next one continues where they ended.
	for range 2 {
		before := s.swept.Load()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		ended := make(chan struct{})
		go func() { defer close(ended); s.Run(ctx) }()
		for s.swept.Load() <= before && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		cancel()
		<-ended
		done := s.swept.Load()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir)
		if s.swept.Load() <= before || s.swept.Load() < done {
			t.Fatalf("no progress: %d, then %d, and %d after a restart", before, done, s.swept.Load())
		}
	}
	run(t, s)
	begun = time.Now()
	var slowest time.Duration
	writes := 0
	for s.swept.Load() < s.compact.Load() && time.Since(begun) < 2*time.Minute {
		b := time.Now()
		put(t, s, fmt.Sprintf("/w/%d", writes), "x")
		slowest = max(slowest, time.Since(b))
		writes++
	}
	swept := time.Since(begun)
	waitSwept(t, s)
	file, wal := s.sizes()
	t.Logf("removed in %v beside %d writes, the slowest %v; file %d MB, then %d kB, log %d kB",
		swept.Round(time.Millisecond), writes, slowest.Round(time.Millisecond), full>>20, file>>10, wal>>10)
	if file > full/20 {
		t.Errorf("the file has %d of %d bytes", file, full)
	}
	if _, n, err := s.Count(t.Context(), "/k/", "/k0", 0); n != keys || err != nil {
		t.Errorf("%d keys, %v", n, err)
	}
	if err := s.writer.do(t.Context(), integrityCheck); err != nil {
		t.Error(err)
	}
}

// TestIdle checks that an unused store uses no CPU and writes nothing.
func TestIdle(t *testing.T) {
	s := open(t, t.TempDir())
	run(t, s)
	put(t, s, "/a", "1")
	w := s.Watch(t.Context(), 0)
	<-w.Eventc
	before := usage(t)
	time.Sleep(3 * time.Second)
	after := usage(t)
	t.Logf("in 3 s: %v of CPU, %d voluntary switches, %d blocks written", after.cpu-before.cpu,
		after.switches-before.switches, after.written-before.written)
	if after.cpu-before.cpu > 20*time.Millisecond || after.written != before.written {
		t.Error("an idle store is not idle")
	}
}

type used struct {
	cpu               time.Duration
	switches, written int64
}

func usage(t *testing.T) used {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	switches, blocks := int64(u.Nvcsw), int64(u.Oublock) //nolint:unconvert // 32 bits on arm
	return used{time.Duration(u.Utime.Nano() + u.Stime.Nano()), switches, blocks}
}

// BenchmarkCreate measures the cost of durability: the same writers with and without syncs.
func BenchmarkCreate(b *testing.B) {
	for _, writers := range []int{1, 32} {
		for _, synchronous := range []string{"FULL", "OFF"} {
			b.Run(fmt.Sprintf("writers=%d/synchronous=%s", writers, synchronous), func(b *testing.B) {
				dir, err := os.MkdirTemp("", "umiak-bench-")
				if err != nil {
					b.Fatal(err)
				}
				defer os.RemoveAll(dir)
				s, err := Open(b.Context(), Options{Dir: dir, Log: slog.New(slog.DiscardHandler),
					synchronous: synchronous})
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				value := make([]byte, 1024)
				next := make(chan int, writers)
				var wg sync.WaitGroup
				b.ResetTimer()
				for range writers {
					wg.Add(1)
					go func() {
						defer wg.Done()
						for i := range next {
							if _, err := s.Create(context.Background(),
								fmt.Sprintf("/registry/configmaps/default/cm-%d", i), value, 0); err != nil {
								b.Error(err)
							}
						}
					}()
				}
				for i := range b.N {
					next <- i
				}
				close(next)
				wg.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
			})
		}
	}
}

// BenchmarkList reads 5,000 values of 1 KiB that have been written once, or eleven times.
func BenchmarkList(b *testing.B) {
	for _, history := range []int{0, 10} {
		b.Run(fmt.Sprintf("history=%d", history), func(b *testing.B) {
			s, err := Open(b.Context(), Options{Dir: b.TempDir(), Log: slog.New(slog.DiscardHandler),
				synchronous: "OFF"})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			value := make([]byte, 1024)
			var wg sync.WaitGroup
			for w := range 50 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for k := w; k < 5000; k += 50 {
						key := fmt.Sprintf("/registry/configmaps/default/cm-%d", k)
						rev, _ := s.Create(b.Context(), key, value, 0)
						for range history {
							rev, _, _, _ = s.Update(b.Context(), key, value, rev, 0)
						}
					}
				}()
			}
			wg.Wait()
			for name, f := range map[string]func() (int64, error){
				"values": func() (int64, error) {
					_, kvs, err := s.List(b.Context(), "/registry/configmaps/", "/registry/configmaps0", 0, 0, false)
					return int64(len(kvs)), err
				},
				"page": func() (int64, error) {
					_, kvs, err := s.List(b.Context(), "/registry/configmaps/", "/registry/configmaps0", 500, 0, false)
					return int64(len(kvs)) * 10, err
				},
				"count": func() (int64, error) {
					_, n, err := s.Count(b.Context(), "/registry/configmaps/", "/registry/configmaps0", 0)
					return n, err
				},
			} {
				b.Run(name, func(b *testing.B) {
					for b.Loop() {
						if n, err := f(); n != 5000 || err != nil {
							b.Fatal(n, err)
						}
					}
				})
			}
		})
	}
}
