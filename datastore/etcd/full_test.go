package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/datastore/etcd"
)

// TestFullDisk checks that a member whose disk becomes full ends at once with that error, although etcd holds locks
// then.
func TestFullDisk(t *testing.T) {
	c := newCluster(t)
	cfg := c.config("full")
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("umiak-test", cfg.Dir, "tmpfs", 0, "size=90m"); err != nil {
		t.Fatal(err)
	}
	// The broken member holds files until this process ends.
	t.Cleanup(func() { _ = unix.Unmount(cfg.Dir, unix.MNT_DETACH) })
	m, err := etcd.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- m.Run(ctx, func() { close(up) }) }()
	select {
	case <-up:
	case err := <-done:
		t.Fatal(err)
	}
	client := dial(t, &member{Server: m, cfg: cfg})
	put := func(i int) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := client.Put(ctx, fmt.Sprintf("/k/%06d", i), strings.Repeat("x", 10_000))
		return err
	}
	if err := put(0); err != nil {
		t.Fatal(err)
	}
	fill, err := os.Create(filepath.Join(cfg.Dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	for err == nil {
		_, err = fill.Write(block)
	}
	_ = fill.Close()
	go func() {
		for i := 1; ctx.Err() == nil && put(i) == nil; i++ {
		}
	}()
	select {
	case err := <-done:
		if !errors.Is(err, etcd.ErrBroken) || !strings.Contains(err.Error(), "no space left") {
			t.Fatal(err)
		}
	case <-ctx.Done():
		t.Fatal("the member does not end")
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}
