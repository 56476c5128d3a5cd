package resolver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/mounted"
	"github.com/umiak-io/umiak/internal/status"
)

// Config describes a Resolver.
type Config struct {
	// Asked is the user's resolv.conf; "" means the host's.
	Asked string
	// PodFile and HostFile are the files to write: for pods with dnsPolicy Default, and for the node's DNS.
	PodFile, HostFile string
	// ClusterDNS are the addresses for pods if the host has no server that pods can reach.
	ClusterDNS []netip.Addr
	// Changed is called after the files have changed; it may be nil.
	Changed func()
	Log     *slog.Logger
}

// Resolver follows the host's name servers.
type Resolver struct {
	cfg         Config
	etc, behind string
	mu          sync.Mutex
	found       Found
	read        bool // found has been read
	lastRemark  string
}

// New returns a Resolver that has read and written nothing yet.
func New(cfg Config) *Resolver {
	cfg.Log = cfg.Log.With("component", "resolver")
	return &Resolver{cfg: cfg, etc: etcFile, behind: resolvedFile}
}

// settleTime is the delay between a change and reading the files: a file is often truncated before it is written.
const settleTime = 100 * time.Millisecond

// Run writes the files and updates them until ctx ends. It calls ready once they are written.
func (r *Resolver) Run(ctx context.Context, ready func()) error {
	if err := r.refresh(); err != nil {
		return err
	}
	ready()
	files, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf(
			"watch the host's resolv.conf (out of inotify instances? raise fs.inotify.max_user_instances): %w", err)
	}
	defer files.Close() //nolint:errcheck // holds no data
	watching, stop := context.WithCancel(ctx)
	mounts := mounted.Watch(watching)
	defer func() {
		stop()
		<-mounts.Ended //nolint:errcheck // canceled above
	}()
	watched := r.watch(files)
	// The files may have changed before the watch began.
	if err := r.refresh(); err != nil {
		return err
	}
	seen := r.identity()
	timer := time.NewTimer(settleTime)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-files.Events:
			if !ok {
				return errors.New("watch the host's resolv.conf: ended")
			}
			if r.identity() == seen && slices.Equal(r.paths(), watched) {
				continue // another file in the folder
			}
			timer.Reset(settleTime)
		case err := <-mounts.Ended:
			return err
		case <-mounts.C:
			if r.identity() == seen {
				continue
			}
			timer.Reset(settleTime)
		case <-timer.C:
			seen = r.identity()
			watched = r.watch(files) // a link may have changed
			if err := r.refresh(); err != nil {
				return err
			}
			if r.identity() != seen || !slices.Equal(r.paths(), watched) { // changed while it was read
				timer.Reset(settleTime)
			}
		case err := <-files.Errors:
			r.cfg.Log.Warn("changes of the host's resolv.conf may be missed", "error", err)
			timer.Reset(settleTime)
		}
	}
}

// refresh reads the host's servers and writes changed files.
func (r *Resolver) refresh() error {
	f := find(r.cfg.Asked, r.etc, r.behind)
	pods, err := atomicfile.WriteIfChanged(r.cfg.PodFile, f.forPods(r.cfg.ClusterDNS), 0o644)
	host, errHost := atomicfile.WriteIfChanged(r.cfg.HostFile, f.forHost(), 0o644)
	if err := errors.Join(err, errHost); err != nil {
		return fmt.Errorf("write name servers: %w", err)
	}
	r.mu.Lock()
	isNew := f.Remark != r.lastRemark
	r.found, r.lastRemark, r.read = f, f.Remark, true
	r.mu.Unlock()
	if isNew && f.Remark != "" {
		r.cfg.Log.Warn(f.Remark)
	}
	if pods || host {
		r.cfg.Log.Info("name servers of the host", "servers", f.Host, "for pods", f.Pods)
		if r.cfg.Changed != nil {
			r.cfg.Changed()
		}
	}
	return nil
}

func (r *Resolver) sources() []string {
	if r.cfg.Asked != "" {
		return []string{r.cfg.Asked}
	}
	return []string{r.etc, r.behind}
}

// identity changes whenever one of the files is replaced or written.
func (r *Resolver) identity() string {
	var out bytes.Buffer
	for _, p := range r.sources() {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			fmt.Fprintf(&out, "%s: %v\n", p, err)
			continue
		}
		fmt.Fprintf(&out, "%d:%d %d %d.%d %d.%d\n", st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec,
			st.Ctim.Nsec)
	}
	return out.String()
}

// paths returns what to watch: the files, their folders, and the folders of all links on the way. Replacing a file by
// rename is only visible in its folder, and writing to a mounted file only on the file itself. For a missing folder, it
// is the nearest existing parent.
func (r *Resolver) paths() []string {
	var out []string
	for _, p := range r.sources() {
		for range 40 { // the kernel follows at most 40 links
			out = append(out, existing(filepath.Dir(p)))
			to, err := os.Readlink(p)
			if err != nil {
				break
			}
			if !filepath.IsAbs(to) {
				to = filepath.Join(filepath.Dir(p), to)
			}
			p = to
		}
		if _, err := os.Stat(p); err == nil {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// watch replaces all watches, since a path may lead to another file now, and returns the watched paths.
func (r *Resolver) watch(w *fsnotify.Watcher) []string {
	for _, old := range w.WatchList() {
		_ = w.Remove(old)
	}
	paths := r.paths()
	for _, p := range paths {
		if err := w.Add(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.cfg.Log.Warn("cannot watch the host's resolv.conf", "path", p, "error", err)
		}
	}
	return paths
}

// existing returns the folder or its nearest existing parent.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" || dir == "." {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// Rows returns the host's name servers, or why they cannot be used, for `umiak status`; none before Run has read them.
func (r *Resolver) Rows() []status.Row {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.read {
		return nil
	}
	row := status.Row{Name: "name servers", State: "known", Detail: fmt.Sprint(r.found.Host)}
	if r.found.Remark != "" {
		row.State, row.Detail = "partly", r.found.Remark
		if len(r.found.Host) == 0 {
			row.State = "unknown"
		}
	}
	return []status.Row{row}
}
