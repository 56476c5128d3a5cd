package agent

import (
	"context"
	"fmt"

	"github.com/umiak-io/umiak/internal/status"
)

// reportingPart is a part of the node with a section of its own in the status.
type reportingPart interface {
	status.Reporter
	Run(ctx context.Context, ready func()) error
}

// switchedOff takes the place of a part that the servers' settings turn off. It removes what an earlier run of that
// part has left on the node.
type switchedOff struct {
	section string // title of the part's section
	setting string // key that turns the part off
	remove  func(context.Context) error
}

var _ reportingPart = switchedOff{}

// Run removes the leftovers, is ready then, and waits until ctx ends.
func (o switchedOff) Run(ctx context.Context, ready func()) error {
	if err := o.remove(ctx); err != nil {
		return fmt.Errorf("%s: remove what an earlier run has left: %w", o.setting, err)
	}
	return idle(ctx, ready)
}

// Section implements status.Reporter.
func (o switchedOff) Section(context.Context) status.Section {
	return status.Section{Name: o.section, Rows: []status.Row{{Name: "rules", State: "off", Detail: o.setting}}}
}
