package apibalancer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/umiak-io/umiak/internal/status"
)

// Section is the section of `umiak status` with the state of each server.
func (b *Balancer) Section(context.Context) status.Section {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := status.Section{Name: "Servers"}
	for _, s := range b.servers {
		row := status.Row{Name: s.addr, State: "answers", Detail: fmt.Sprintf("%d connections", len(s.conns))}
		if s.down != nil {
			row.State, row.Detail = "away", fmt.Sprintf("for %s: %v", time.Since(s.since).Round(time.Second), s.down)
		}
		if !slices.Contains(b.listed, s.addr) && s.addr != b.cfg.Given {
			row.Detail += ", off the list"
		}
		out.Rows = append(out.Rows, row)
	}
	slices.SortFunc(out.Rows, func(x, y status.Row) int { return strings.Compare(x.Name, y.Name) })
	return out
}
