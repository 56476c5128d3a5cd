package sqlite

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/testing/testns"
)

// TestMain also runs the child processes that the tests kill. UMIAK_CHILD selects one: "load" writes as fast as it
// can and prints the acknowledged writes, "dump" prints the content.
func TestMain(m *testing.M) {
	var err error
	switch os.Getenv("UMIAK_CHILD") {
	case "":
		// In mount namespaces of others, which might be copied from ours while a FUSE disk is mounted, it would live
		// on.
		os.Exit(testns.Run(func() int {
			if os.Geteuid() == 0 {
				if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
					fmt.Fprintln(os.Stderr, "make mounts private:", err)
					return 1
				}
			}
			return m.Run()
		}, unix.CLONE_NEWNS))
	case "load":
		err = childLoad()
	case "dump":
		err = childDump()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

const (
	crashKeys    = 96
	crashWorkers = 32
)

func childOpen() (*Store, error) {
	return Open(context.Background(), Options{Dir: os.Getenv("UMIAK_DIR"),
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), synchronous: os.Getenv("UMIAK_SYNC")})
}

// deletes reports whether step n of a key deletes it; other steps write n into it.
func deletes(n int) bool { return n%7 == 6 }

func childLoad() error {
	s, err := childOpen()
	if err != nil {
		return err
	}
	base, _ := strconv.Atoi(os.Getenv("UMIAK_BASE"))
	ctx := context.Background()
	go s.Run(ctx)
	go func() { // compaction, which the API server requests every five minutes, all the time
		for range time.Tick(20 * time.Millisecond) {
			_, _ = s.Compact(ctx, s.current.Load()-50)
		}
	}()
	fmt.Println("ready")
	errs := make(chan error)
	for w := range crashWorkers {
		go func() { errs <- childWork(ctx, s, w, base) }()
	}
	return <-errs
}

func childWork(ctx context.Context, s *Store, w, base int) error {
	for n := base; ; n++ {
		for k := w; k < crashKeys; k += crashWorkers {
			key := fmt.Sprintf("/k/%d", k)
			_, kv, err := s.Get(ctx, key, 0, false)
			if err != nil {
				return err
			}
			var rev int64
			value := []byte(fmt.Sprintf("%d %s", n, strings.Repeat("x", (n*7919+k*104729)%6000)))
			switch {
			case deletes(n):
				if kv == nil {
					rev = s.current.Load()
					break
				}
				var ok bool
				if rev, _, ok, err = s.Delete(ctx, key, kv.ModRevision); err == nil && !ok {
					err = errors.New("conflict")
				}
			case kv == nil:
				rev, err = s.Create(ctx, key, value, 0)
			default:
				var ok bool
				if rev, _, ok, err = s.Update(ctx, key, value, kv.ModRevision, 0); err == nil && !ok {
					err = errors.New("conflict")
				}
			}
			if err != nil {
				return fmt.Errorf("%s %d: %w", key, n, err)
			}
			// One write call per line, so that each line that the parent reads was acknowledged.
			if _, err := fmt.Fprintf(os.Stdout, "%d %d %d\n", k, n, rev); err != nil {
				return err
			}
		}
	}
}

type dump struct {
	Status Status
	Keys   map[int]dumped
}

type dumped struct {
	N   int
	Rev int64
}

func childDump() error {
	s, err := childOpen()
	if err != nil {
		return err
	}
	d := dump{Status: s.Status(), Keys: map[int]dumped{}}
	_, kvs, err := s.List(context.Background(), "/k/", "/k0", 0, 0, false)
	if err != nil {
		return err
	}
	for _, kv := range kvs {
		var k, n int
		_, _ = fmt.Sscanf(kv.Key, "/k/%d", &k)
		_, _ = fmt.Sscan(string(kv.Value), &n)
		d.Keys[k] = dumped{n, kv.ModRevision}
	}
	if err := s.Close(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(d)
}

func child(t *testing.T, what, dir, sync string, base int) *exec.Cmd {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), "UMIAK_CHILD="+what, "UMIAK_DIR="+dir, "UMIAK_SYNC="+sync,
		"UMIAK_BASE="+strconv.Itoa(base))
	c.Stderr = t.Output()
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c
}

// crash runs rounds of load that end in kill, and checks after each one that all acknowledged writes are there. It
// returns the first loss.
func crash(t *testing.T, rounds int, sync string, mount func() string, kill func(*exec.Cmd)) (acked int, lost error) {
	t.Helper()
	known := map[int]dumped{} // state of each key; N of 0 means that it is not there
	for round := range rounds {
		base := (round + 1) * 1_000_000
		dir := mount()
		c := child(t, "load", dir, sync, base)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		if line, err := lines.ReadString('\n'); line != "ready\n" {
			_ = c.Wait()
			return acked, fmt.Errorf("round %d: does not open: %q, %w", round, line, err)
		}
		last := map[int]dumped{} // newest acknowledged step of each key in this round
		newest := int64(0)
		killed := make(chan struct{})
		time.AfterFunc(time.Duration(100+rand.IntN(400))*time.Millisecond, func() {
			kill(c)
			close(killed)
		})
		for {
			line, err := lines.ReadString('\n')
			if err != nil { // an incomplete last line was not acknowledged
				if !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				break
			}
			var k, n int
			var rev int64
			if _, err := fmt.Sscan(line, &k, &n, &rev); err != nil {
				t.Fatal(err)
			}
			last[k] = dumped{n, rev}
			newest = max(newest, rev)
			acked++
		}
		<-killed
		_ = c.Wait()

		b, err := child(t, "dump", mount(), sync, 0).Output()
		if err != nil {
			return acked, fmt.Errorf("round %d: does not open again: %w", round, err)
		}
		var d dump
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatal(err)
		}
		if d.Status.Recovery != nil || d.Status.Integrity.Error != "" {
			return acked, fmt.Errorf("round %d: damaged: %+v, %+v", round, d.Status.Recovery, d.Status.Integrity)
		}
		if d.Status.Revision < newest {
			return acked, fmt.Errorf("round %d: at revision %d after %d was acknowledged", round, d.Status.Revision,
				newest)
		}
		for k := range crashKeys {
			now, there := d.Keys[k]
			was, any := last[k]
			next := was.N + 1
			if !any {
				was, next = known[k], base
				if was.N == 0 {
					was.N = 6 // as if deleted
				}
			}
			ok := there && !deletes(was.N) && now.N == was.N && now.Rev == was.Rev ||
				!there && deletes(was.N) ||
				there && !deletes(next) && now.N == next && now.Rev > was.Rev ||
				!there && deletes(next)
			if !ok {
				return acked, fmt.Errorf("round %d: key %d: step %d at revision %d was acknowledged, found %+v (%v)",
					round, k, was.N, was.Rev, now, there)
			}
			known[k] = now
		}
	}
	return acked, nil
}

func TestKill(t *testing.T) {
	dir := t.TempDir()
	acked, err := crash(t, 20, "FULL", func() string { return dir }, func(c *exec.Cmd) { _ = c.Process.Kill() })
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d acknowledged writes, 20 kills", acked)
}
