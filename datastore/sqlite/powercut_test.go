//go:build !arm

// go-fuse v2.12.1 does not compile where int has 32 bits (package splice), so no disk can lose power there.

package sqlite

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/umiak-io/umiak/internal/testing/powercut"
)

// powerCuts runs rounds on a disk that loses data that was not synced.
func powerCuts(t *testing.T, rounds int, synchronous string, seed uint64) (acked, syncs int, lost error) {
	t.Helper()
	disk, dir := powercut.New(), t.TempDir()
	rng := rand.New(rand.NewPCG(seed, 0))
	var mounted *powercut.Mount
	end := func() {
		if mounted != nil {
			if err := mounted.Unmount(); err != nil {
				t.Error(err)
			}
			mounted = nil
		}
	}
	defer end()
	var mu sync.Mutex
	mount := func() string {
		mu.Lock()
		defer mu.Unlock()
		end()
		m, err := disk.Mount(dir)
		if err != nil {
			t.Skipf("no FUSE here: %v", err)
		}
		mounted = m
		return dir
	}
	acked, lost = crash(t, rounds, synchronous, mount, func(c *exec.Cmd) {
		disk.Cut(rng)
		_ = c.Process.Kill()
	})
	return acked, disk.Syncs(), lost
}

func TestPowerCut(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting FUSE needs root")
	}
	acked, syncs, err := powerCuts(t, 30, "FULL", rand.Uint64())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d acknowledged writes, %d syncs, 30 power cuts", acked, syncs)
}

// TestPowerCutFindsLoss shows that TestPowerCut can fail: with fewer syncs, it does.
func TestPowerCutFindsLoss(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting FUSE needs root")
	}
	for _, synchronous := range []string{"OFF", "NORMAL"} {
		acked, _, err := powerCuts(t, 30, synchronous, 1)
		if err == nil {
			t.Fatalf("%s: %d writes acknowledged before they were synced, and none was lost", synchronous, acked)
		}
		t.Logf("%s: found as expected: %v", synchronous, err)
	}
}
