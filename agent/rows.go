package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/internal/wallclock"
)

// Sources are the node's sections of `umiak status`.
func (a *Agent) Sources() []status.Source {
	return []status.Source{
		func(context.Context) status.Section {
			row := status.Row{Name: a.name, Detail: a.nameRemark}
			if m := a.machine.Load(); m != nil {
				row.State = fmt.Sprintf("cgroup v%d, %s", m.cgroup.Version, m.cgroup.Driver)
			}
			rows := append([]status.Row{row}, a.addrs.Rows()...)
			if doubt := wallclock.Doubt(time.Now()); doubt != "" {
				rows = append(rows, status.Row{Name: "clock", State: "look at this", Detail: doubt + ": " + wallclock.Remedy})
			}
			if n := a.network.Load(); n != nil {
				if r := n.SourceRemark(); r != "" {
					rows = append(rows, status.Row{Name: "pods' sources", Detail: r})
				}
				rows = append(rows, portRows(n)...)
			}
			return status.Section{Name: "Node", Rows: rows}
		},
		a.registries.Status,
		a.imageRows,
		a.sharingRows,
		func(ctx context.Context) status.Section {
			if t := a.tunnels.Load(); t != nil {
				return t.Status(ctx)
			}
			return status.Section{Name: "Tunnels to servers"}
		},
		a.proxyRows,
		a.policyRows,
		func(ctx context.Context) status.Section {
			out := status.Section{Name: "DNS"}
			if s := a.dns.Load(); s != nil {
				out = s.Status(ctx)
			}
			if r := a.resolv.Load(); r != nil {
				out.Rows = append(out.Rows, r.Status())
			}
			return out
		},
	}
}

func (a *Agent) proxyRows(context.Context) status.Section {
	out := status.Section{Name: "Services"}
	p := a.proxy.Load()
	if p == nil {
		return out
	}
	s := p.Status()
	row := status.Row{Name: "rules", State: "in force", Detail: fmt.Sprintf("%d ports of Services, %d endpoints, %d repairs", s.Services, s.Endpoints, s.Repairs)}
	switch {
	case s.LastError != "":
		row.State, row.Detail = "failing", s.LastError
	case !s.Ready:
		row.State = "starting"
	}
	out.Rows = append(out.Rows, row)
	for _, r := range s.Refused {
		out.Rows = append(out.Rows, status.Row{Name: "refused", Detail: r})
	}
	return out
}

func (a *Agent) policyRows(context.Context) status.Section {
	out := status.Section{Name: "Network policies"}
	p := a.policy.Load()
	if p == nil {
		return out
	}
	s := p.Status()
	row := status.Row{Name: "rules", State: "in force", Detail: fmt.Sprintf("%d policies, %d pods here, %d in the cluster, %d repairs", s.Policies, s.LocalPods, s.Pods, s.Repairs)}
	switch {
	case s.LastError != "":
		row.State, row.Detail = "failing", s.LastError
	case !s.Ready:
		row.State = "starting"
	case s.Warning != "":
		row.State, row.Detail = "incomplete", s.Warning
	case s.Policies == 0:
		row.State, row.Detail = "none", ""
	}
	out.Rows = append(out.Rows, row)
	for _, r := range s.Refused {
		out.Rows = append(out.Rows, status.Row{Name: "refused", Detail: r})
	}
	return out
}
