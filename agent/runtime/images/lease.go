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
	// ingestPrefix begins the refs of content that an import writes, and the IDs of import leases.
	ingestPrefix = "umiak-import-"
	// ownerLabel is the label of a lease that identifies the importing process.
	ownerLabel = "umiak.io/import-owner"
)

// owner identifies a process by PID, start time and boot ID: PIDs are reused.
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

// alive reports whether the process that owner identified still runs.
func alive(name string) bool {
	text, _, _ := strings.Cut(name, "/")
	pid, err := strconv.Atoi(text)
	if err != nil {
		return false
	}
	now, err := owner(pid)
	return err == nil && now == name
}

// withLease returns a context and a content store that protect what an import writes from garbage collection until
// release is called. release also removes content that the import began and did not finish.
func withLease(ctx context.Context, c *client.Client) (
	_ context.Context, store content.Store, release func() error, err error,
) {
	self, err := owner(os.Getpid())
	if err != nil {
		return nil, nil, nil, fmt.Errorf("identify this process: %w", err)
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	name := ingestPrefix + hex.EncodeToString(id[:])
	l, err := c.LeasesService().Create(ctx, leases.WithID(name), leases.WithExpiration(24*time.Hour),
		leases.WithLabels(map[string]string{ownerLabel: self}))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("create a lease for the import: %w", err)
	}
	held := leases.WithLease(ctx, l.ID)
	return held, prefixedStore{c.ContentStore(), name + "-"}, func() error {
		// Clean up even if ctx has ended.
		after := context.WithoutCancel(ctx)
		return errors.Join(abort(after, c.ContentStore(),
			func(ref string) bool { return strings.HasPrefix(ref, name+"-") }),
			ignoreNotFound(c.LeasesService().Delete(after, l)))
	}, nil
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// prefixedStore is a content store that prefixes the refs of content being written, so that they are distinguishable
// from other writers' refs.
type prefixedStore struct {
	content.Store
	prefix string
}

// Writer implements content.Ingester.
func (m prefixedStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	return m.Store.Writer(ctx, append(opts, content.WithRef(m.prefix+o.Ref))...)
}

// abort removes the unfinished content of imports whose ref is stale.
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

// abortOne removes unfinished content. It retries, because containerd may still be closing the content for its writer,
// which makes a removal fail half-way.
func abortOne(ctx context.Context, store content.IngestManager, ref string) error {
	const attempts, pause = 20, 50 * time.Millisecond
	var err error
	for range attempts {
		if err = ignoreNotFound(store.Abort(ctx, ref)); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause): // containerd has no event for it
		}
	}
	return fmt.Errorf("remove unfinished content: %w", err)
}

// unfinishedContent lists the refs that imports are writing, or have begun to write.
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

// sweep removes the leases and unfinished content of imports whose process has died.
func sweep(ctx context.Context, c *client.Client) error {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	// List content before leases: an import creates its lease before it writes.
	refs, err := unfinishedContent(ctx, c.ContentStore())
	if err != nil {
		return err
	}
	all, err := c.LeasesService().List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	held := map[string]bool{}
	// This process imports nothing yet, so a lease that it owns is from before it re-executed itself.
	self, err := owner(os.Getpid())
	if err != nil {
		return fmt.Errorf("identify this process: %w", err)
	}
	var errs []error
	for _, l := range all {
		if !strings.HasPrefix(l.ID, ingestPrefix) {
			continue
		}
		if process := l.Labels[ownerLabel]; process != self && alive(process) {
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
