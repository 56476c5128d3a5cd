package images

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/prometheus/procfs"
)

const (
	// ingestPrefix begins the names of content that an import is writing; the name of its lease follows.
	ingestPrefix = "umiak-import-"
	// ownerLabel names, on a lease, the process that imports.
	ownerLabel = "umiak.io/import-owner"
)

// owner identifies a process of this boot: its number alone is given again.
func owner(pid int) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	p, err := procfs.NewProc(pid)
	if err != nil {
		return "", err
	}
	stat, err := p.Stat()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d/%d/%s", pid, stat.Starttime, strings.TrimSpace(string(boot))), nil
}

// alive reports whether the process that owner named still runs.
func alive(name string) bool {
	text, _, _ := strings.Cut(name, "/")
	pid, err := strconv.Atoi(text)
	if err != nil {
		return false
	}
	now, err := owner(pid)
	return err == nil && now == name
}

// hold keeps what an import writes from being collected until release is called, which also removes what was begun and not finished.
func hold(ctx context.Context, c *client.Client) (_ context.Context, store content.Store, release func() error, err error) {
	who, err := owner(os.Getpid())
	if err != nil {
		return nil, nil, nil, fmt.Errorf("name this process: %w", err)
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	name := ingestPrefix + hex.EncodeToString(id[:])
	l, err := c.LeasesService().Create(ctx, leases.WithID(name), leases.WithExpiration(24*time.Hour), leases.WithLabels(map[string]string{ownerLabel: who}))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("make a lease for the import: %w", err)
	}
	held := leases.WithLease(ctx, l.ID)
	return held, marked{c.ContentStore(), name + "-"}, func() error {
		// Also when the import was told to stop.
		after := context.WithoutCancel(ctx)
		return errors.Join(abort(after, c.ContentStore(), func(ref string) bool { return strings.HasPrefix(ref, name+"-") }),
			ignoreNotFound(c.LeasesService().Delete(after, l)))
	}, nil
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// marked is a content store in which everything that is being written can be told from what others write.
type marked struct {
	content.Store
	prefix string
}

// Writer implements content.Ingester.
func (m marked) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	return m.Store.Writer(ctx, append(opts, content.WithRef(m.prefix+o.Ref))...)
}

// abort removes what is being written under names that stale accepts.
func abort(ctx context.Context, store content.IngestManager, stale func(ref string) bool) error {
	refs, err := unfinishedContent(ctx, store)
	if err != nil {
		return err
	}
	var errs []error
	for _, ref := range refs {
		if stale(ref) {
			errs = append(errs, abortOne(ctx, store, ref))
		}
	}
	return errors.Join(errs...)
}

// abortOne removes one. containerd may still be closing it for whoever wrote it, which makes the removal fail half-way.
func abortOne(ctx context.Context, store content.IngestManager, ref string) error {
	const often, pause = 20, 50 * time.Millisecond
	var err error
	for range often {
		if err = ignoreNotFound(store.Abort(ctx, ref)); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause): // nothing tells when it is closed
		}
	}
	return fmt.Errorf("remove unfinished content: %w", err)
}

// unfinishedContent lists what imports are writing, or have begun to write.
func unfinishedContent(ctx context.Context, store content.IngestManager) ([]string, error) {
	all, err := store.ListStatuses(ctx)
	if err != nil {
		return nil, fmt.Errorf("list unfinished content: %w", err)
	}
	var out []string
	for _, s := range all {
		if strings.HasPrefix(s.Ref, ingestPrefix) {
			out = append(out, s.Ref)
		}
	}
	return out, nil
}

// sweep removes what imports left that were killed.
func sweep(ctx context.Context, c *client.Client) error {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	// In this order: an import makes its lease before it writes.
	refs, err := unfinishedContent(ctx, c.ContentStore())
	if err != nil {
		return err
	}
	all, err := c.LeasesService().List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	held := map[string]bool{}
	// Nothing is imported here yet: what names this process as its owner is from before it executed itself again.
	me, err := owner(os.Getpid())
	if err != nil {
		return fmt.Errorf("identify this process: %w", err)
	}
	var errs []error
	for _, l := range all {
		if !strings.HasPrefix(l.ID, ingestPrefix) {
			continue
		}
		if who := l.Labels[ownerLabel]; who != me && alive(who) {
			held[l.ID] = true
		} else {
			errs = append(errs, ignoreNotFound(c.LeasesService().Delete(ctx, l)))
		}
	}
	for _, ref := range refs {
		id, _, _ := strings.Cut(strings.TrimPrefix(ref, ingestPrefix), "-")
		if !held[ingestPrefix+id] {
			errs = append(errs, abortOne(ctx, c.ContentStore(), ref))
		}
	}
	return errors.Join(errs...)
}
