package nodecmd

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/internal/version"
)

// Preparation answers `umiak status` before the parts of a process run: what has to be known first, as an address or the
// answer of another server, may be long in coming.
type Preparation struct {
	cancel context.CancelFunc
	ended  chan struct{}

	mu    sync.Mutex
	doing string
	since time.Time
}

// Prepare opens the status socket until End. Call it with the data directory locked. A socket that cannot be opened is logged:
// the process's own fails then.
func Prepare(ctx context.Context, d layout.Dirs, log *slog.Logger) *Preparation {
	ctx, cancel := context.WithCancel(ctx)
	p := &Preparation{cancel: cancel, ended: make(chan struct{}), doing: "reading what is there", since: time.Now()}
	open := make(chan struct{})
	go func() {
		defer close(p.ended)
		st := status.Server{Socket: d.StatusSocket(), Version: version.Version, Ready: func() bool { return false }, Sources: []status.Source{p.section}}
		if err := st.Run(ctx, func() { close(open) }); err != nil && ctx.Err() == nil {
			log.Warn("umiak status does not see this start before its parts run", "error", err)
		}
	}()
	select {
	case <-open:
	case <-p.ended:
	}
	return p
}

// Step names what the start does from now on, which may take a while.
func (p *Preparation) Step(doing string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doing, p.since = doing, time.Now()
}

// End stops answering: the process's own socket is about to be opened. It may be called twice.
func (p *Preparation) End() {
	p.cancel()
	<-p.ended
}

func (p *Preparation) section(context.Context) status.Section {
	p.mu.Lock()
	defer p.mu.Unlock()
	return status.Section{Name: "Start", Rows: []status.Row{{Name: "preparing", State: "waiting", Detail: p.doing + ", for " + time.Since(p.since).Round(time.Second).String()}}}
}
