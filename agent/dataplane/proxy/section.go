package proxy

import (
	"context"
	"fmt"

	"github.com/umiak-io/umiak/internal/status"
)

// SectionName is the title of the proxy in `umiak status`.
const SectionName = "Services"

var _ status.Reporter = (*Proxy)(nil)

// Section reports whether the rules are in force, what Services ask for and do not get, and whether the metrics port of
// the settings is served.
func (p *Proxy) Section(context.Context) status.Section {
	s := p.Status()
	rules := status.Rules{Detail: fmt.Sprintf("%d ports of Services, %d endpoints, %d repairs", s.Services, s.Endpoints,
		s.Repairs),
		Ready: s.Ready, Error: s.LastError, Refused: s.Refused}
	return status.Section{Name: SectionName, Rows: append(rules.Rows(), p.metrics.rows()...)}
}
