package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/umiak-io/umiak/agent/host/filewatch"
	"github.com/umiak-io/umiak/internal/atomicfile"
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

// Run writes the files and updates them until ctx ends. It calls ready once they are written.
func (r *Resolver) Run(ctx context.Context, ready func()) error {
	if err := r.refresh(); err != nil {
		return err
	}
	ready()
	return filewatch.Follow(ctx, filewatch.Config{
		Name: "the host's resolv.conf", Files: r.sources(), Mounts: true, Changed: r.refresh, Log: r.cfg.Log,
	})
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

// sources are the files to read.
func (r *Resolver) sources() []string {
	if r.cfg.Asked != "" {
		return []string{r.cfg.Asked}
	}
	return []string{r.etc, r.behind}
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
