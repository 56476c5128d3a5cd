package netpol

import (
	"context"
	"fmt"

	"github.com/umiak-io/umiak/internal/status"
)

// SectionName is the title of the policies in `umiak status`.
const SectionName = "Network policies"

var _ status.Reporter = (*Policies)(nil)

// Section reports whether the rules are in force, and which policies allow nothing because they cost too much.
func (p *Policies) Section(context.Context) status.Section {
	s := p.Status()
	rules := status.Rules{Detail: fmt.Sprintf("%d policies, %d pods here, %d in the cluster, %d repairs", s.Policies,
		s.LocalPods, s.Pods, s.Repairs),
		Ready: s.Ready, Error: s.LastError, Warning: s.Warning, None: s.Policies == 0, Refused: s.Refused}
	return status.Section{Name: SectionName, Rows: rules.Rows()}
}
