package process

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/internal/version"
)

// Preparation answers `umiak status` before the parts of a process run: it may take long until an address or the answer
// of another server is there.
type Preparation struct {
	cancel context.CancelFunc
	ended  chan struct{}

	mu    sync.Mutex
	doing string
	since time.Time
}

// Prepare serves the status socket until End. The caller owns the data directory. A socket that cannot be opened is
// logged: the Process reports it later.
func Prepare(ctx context.Context, d layout.Dirs, log *slog.Logger) *Preparation {
	ctx, cancel := context.WithCancel(ctx)
	p := &Preparation{cancel: cancel, ended: make(chan struct{}), doing: "reading what is there", since: time.Now()}
	open := make(chan struct{})
	go func() {
		defer close(p.ended)
		st := status.Server{
			Socket: d.StatusSocket(), Version: version.Version, Ready: func() bool { return false },
			Sources: []status.Source{p.Section},
		}
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

// Step names what the start waits for from now on.
func (p *Preparation) Step(doing string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doing, p.since = doing, time.Now()
}

// End closes the socket, before the Process opens its own. It may be called twice.
func (p *Preparation) End() {
	p.cancel()
	<-p.ended
}

var _ status.Reporter = (*Preparation)(nil)

// Section reports what the start waits for.
func (p *Preparation) Section(context.Context) status.Section {
	p.mu.Lock()
	defer p.mu.Unlock()
	row := status.Row{Name: "preparing", State: "waiting", Detail: p.doing + ", for " +
		time.Since(p.since).Round(time.Second).String()}
	return status.Section{Name: "Start", Rows: []status.Row{row}}
}
