package addons

import (
	"context"
	"sync/atomic"

	"k8s.io/client-go/rest"

	"github.com/umiak-io/umiak/internal/status"
)

// Part runs a controller as a part of the server, a new one after each failure.
type Part struct {
	cfg     Config
	connect func() (*rest.Config, error)
	current atomic.Pointer[Controller]
}

// NewPart returns the part; connect returns Config.REST when the part runs.
func NewPart(cfg Config, connect func() (*rest.Config, error)) *Part {
	return &Part{cfg: cfg, connect: connect}
}

// Run keeps the manifests applied until ctx ends.
func (p *Part) Run(ctx context.Context, ready func()) error {
	cfg := p.cfg
	var err error
	if cfg.REST, err = p.connect(); err != nil {
		return err
	}
	c, err := New(cfg)
	if err != nil {
		return err
	}
	p.current.Store(c)
	return c.Run(ctx, ready)
}

// Section returns the section Manifests of `umiak status`.
func (p *Part) Section(ctx context.Context) status.Section {
	if c := p.current.Load(); c != nil {
		return c.Section(ctx)
	}
	return status.Section{Name: "Manifests"}
}
