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

// Config says where to look and where to write.
type Config struct {
	// Asked is the user's resolv.conf; empty: the host's is found.
	Asked string
	// PodFile and HostFile are written: for pods with dnsPolicy Default, and for the node's DNS.
	PodFile, HostFile string
	// ClusterDNS are the addresses that pods get where the host has no server that they reach.
	ClusterDNS []netip.Addr
	// Changed is called after the files have changed; nil is allowed.
	Changed func()
	Log     *slog.Logger
}

// Resolver follows the host's name servers.
type Resolver struct {
	cfg         Config
	etc, behind string
	mu          sync.Mutex
	found       Found
	lastRemark  string
}

// New makes a Resolver; nothing is read or written yet.
func New(cfg Config) *Resolver {
	cfg.Log = cfg.Log.With("component", "resolver")
	return &Resolver{cfg: cfg, etc: etcFile, behind: resolvedFile}
}

// settle is how long changes are let come to rest: a file is often emptied before it is written.
const settle = 100 * time.Millisecond

// Run writes the files and keeps them true until ctx ends. It is ready once they are written.
func (r *Resolver) Run(ctx context.Context, ready func()) error {
	if err := r.refresh(); err != nil {
		return err
	}
	ready()
	files, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch the host's resolv.conf (inotify instances used up? raise fs.inotify.max_user_instances): %w", err)
	}
	defer files.Close() //nolint:errcheck // nothing is written
	watching, stop := context.WithCancel(ctx)
	mounts := mounted.Watch(watching)
	defer func() {
		stop()
		<-mounts.Ended //nolint:errcheck // told to end
	}()
	watched := r.watch(files)
	// What has changed between reading and watching.
	if err := r.refresh(); err != nil {
		return err
	}
	seen := r.identity()
	timer := time.NewTimer(settle)
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
				continue // another file of the folder
			}
			timer.Reset(settle)
		case err := <-mounts.Ended:
			return err
		case <-mounts.C:
			if r.identity() == seen {
				continue
			}
			timer.Reset(settle)
		case <-timer.C:
			seen = r.identity()
			watched = r.watch(files) // a link may lead elsewhere now
			if err := r.refresh(); err != nil {
				return err
			}
			if r.identity() != seen || !slices.Equal(r.paths(), watched) { // changed while it was read
				timer.Reset(settle)
			}
		case err := <-files.Errors:
			r.cfg.Log.Warn("cannot see all changes of the host's resolv.conf", "error", err)
			timer.Reset(settle)
		}
	}
}

// refresh reads the host's servers and writes what has changed.
func (r *Resolver) refresh() error {
	f := find(r.cfg.Asked, r.etc, r.behind)
	pods, err := atomicfile.WriteIfChanged(r.cfg.PodFile, f.forPods(r.cfg.ClusterDNS), 0o644)
	host, errHost := atomicfile.WriteIfChanged(r.cfg.HostFile, f.forHost(), 0o644)
	if err := errors.Join(err, errHost); err != nil {
		return fmt.Errorf("write name servers: %w", err)
	}
	r.mu.Lock()
	news := f.Remark != r.lastRemark
	r.found, r.lastRemark = f, f.Remark
	r.mu.Unlock()
	if news && f.Remark != "" {
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

// identity changes whenever one of the files is another one or has been written.
func (r *Resolver) identity() string {
	var out bytes.Buffer
	for _, p := range r.sources() {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			fmt.Fprintf(&out, "%s: %v\n", p, err)
			continue
		}
		fmt.Fprintf(&out, "%d:%d %d %d.%d %d.%d\n", st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec)
	}
	return out.String()
}

// paths are what has to be watched: the files, the folders of the files and of every link on the way. A file is often
// replaced by renaming, which a watch of the file itself misses, and a mounted file is written in place, which a watch of
// its folder misses. Of a folder that is not there it is the nearest above it.
func (r *Resolver) paths() []string {
	var out []string
	for _, p := range r.sources() {
		for range 40 { // as many links as the kernel follows
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

// watch begins to watch anew: by an old path another file may be meant now. It returns what is watched.
func (r *Resolver) watch(w *fsnotify.Watcher) []string {
	for _, old := range w.WatchList() {
		_ = w.Remove(old)
	}
	paths := r.paths()
	for _, p := range paths {
		if err := w.Add(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.cfg.Log.Warn("cannot see changes of the host's resolv.conf", "path", p, "error", err)
		}
	}
	return paths
}

// existing is the folder, or the nearest above it that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" || dir == "." {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// Status is for `umiak status`.
func (r *Resolver) Status() status.Row {
	r.mu.Lock()
	defer r.mu.Unlock()
	row := status.Row{Name: "name servers", State: "known", Detail: fmt.Sprint(r.found.Host)}
	if r.found.Remark != "" {
		row.State, row.Detail = "partly", r.found.Remark
		if len(r.found.Host) == 0 {
			row.State = "unknown"
		}
	}
	return row
}
