package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/umiak-io/umiak/agent/dataplane/dns"
	"github.com/umiak-io/umiak/agent/dataplane/netpol"
	"github.com/umiak-io/umiak/agent/dataplane/proxy"
	"github.com/umiak-io/umiak/agent/tunnel"
	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/internal/wallclock"
)

// Sources lists the node's sections of `umiak status`. Those of parts that need the cluster are empty until the node
// has joined.
func (a *Agent) Sources() []status.Source {
	sources := []status.Source{a.section}
	if a.foreign == nil {
		sources = append(sources, a.registries.Section, a.images.Section, a.share.Section)
	}
	return append(sources, []status.Source{
		a.memberSection(tunnel.SectionName, func(n *node) status.Reporter { return n.tunnels }),
		a.memberSection(proxy.SectionName, func(n *node) status.Reporter { return n.proxy }),
		a.memberSection(netpol.SectionName, func(n *node) status.Reporter { return n.policies }),
		a.memberSection(dns.SectionName, func(n *node) status.Reporter { return nameService{n.dns, n.resolver} }),
	}...)
}

func (a *Agent) memberSection(name string, of func(*node) status.Reporter) status.Source {
	return func(ctx context.Context) status.Section {
		if n := a.stage.Node(); n != nil {
			return of(n).Section(ctx)
		}
		return status.Section{Name: name}
	}
}

// section reports the machine itself.
func (a *Agent) section(context.Context) status.Section {
	row := status.Row{Name: a.name, Detail: a.nameRemark}
	if m := a.stage.Machine(); m != nil {
		row.State = fmt.Sprintf("cgroup v%d, %s", m.Cgroup.Version, m.Cgroup.Driver)
	}
	rows := append([]status.Row{row}, a.addrs.Rows()...)
	if a.foreign != nil {
		rows = append(rows, a.foreign.Rows()...)
	}
	if doubt := wallclock.Doubt(time.Now()); doubt != "" {
		rows = append(rows, status.Row{Name: "clock", State: "look at this", Detail: doubt + ": " + wallclock.Remedy})
	}
	if n := a.stage.Node(); n != nil {
		rows = append(rows, n.network.Rows()...)
	}
	return status.Section{Name: "Node", Rows: rows}
}

// nameService is the node's DNS with the host's name servers that it asks, in one section.
type nameService struct {
	*dns.Server
	resolver interface{ Rows() []status.Row }
}

// Section implements status.Reporter.
func (s nameService) Section(ctx context.Context) status.Section {
	out := s.Server.Section(ctx)
	out.Rows = append(out.Rows, s.resolver.Rows()...)
	return out
}
