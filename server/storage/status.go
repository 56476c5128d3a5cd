package storage

import (
	"context"
	"fmt"

	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/internal/status"
)

// Section returns the datastore's section of `umiak status`.
func (r *Runner) Section(ctx context.Context) status.Section {
	out := status.Section{Name: "Datastore"}
	if why := r.unprotected(); why != "" {
		out.Rows = append(out.Rows, status.Row{Name: "way to the database", State: "look at this",
			Detail: why + ": who stands between can change everything in the cluster; set datastore-cafile"})
	}
	if r.cfg.Current.Store() == nil {
		return out
	}
	d, err := r.cfg.Current.Status(ctx)
	if err != nil {
		out.Rows = append(out.Rows, status.Row{Name: "datastore", State: status.Unhealthy, Detail: err.Error()})
		return memberRows(out, d.Etcd)
	}
	if q := d.SQLite; q != nil {
		row := status.Row{Name: d.Backend, State: "healthy",
			Detail: fmt.Sprintf("%s, write-ahead log %s, revision %d, compacted to %d",
				mebibytes(q.FileBytes), mebibytes(q.WALBytes), q.Revision, q.CompactRevision)}
		if q.LastError != "" {
			row.State, row.Detail = status.Unhealthy, q.LastError
		}
		out.Rows = append(out.Rows, row)
		if q.Recovery != nil {
			out.Rows = append(out.Rows, status.Row{Name: "recovery", State: "look at this",
				Detail: fmt.Sprintf("%s; %d revisions kept, %d lost; the damaged files are in %s",
					q.Recovery.Reason, q.Recovery.Rows, q.Recovery.LostRows, q.Recovery.Kept)})
		}
	}
	if v := d.Volatile; v != nil {
		out.Rows = append(out.Rows, status.Row{Name: "in memory", State: "healthy",
			Detail: fmt.Sprintf("leases and events: %d keys, %s", v.Keys, mebibytes(v.Bytes))})
	}
	if e := d.External; e != nil {
		out.Rows = append(out.Rows, status.Row{Name: e.Kind, State: "healthy",
			Detail: fmt.Sprintf("%s, revision %d", e.Address, e.Revision)})
	}
	return etcdRows(out, d.Etcd)
}

// etcdRows adds the rows of an etcd member.
func etcdRows(out status.Section, e *etcd.Status) status.Section {
	if e == nil {
		return out
	}
	row := status.Row{Name: "etcd", State: "healthy",
		Detail: fmt.Sprintf("%s, %s of it in use, revision %d", mebibytes(e.FileBytes), mebibytes(e.InUseBytes),
			e.Revision)}
	if len(e.Alarms) > 0 {
		row.State, row.Detail = status.Unhealthy, fmt.Sprintf("alarms %v; %s", e.Alarms, row.Detail)
	}
	out.Rows = append(out.Rows, row)
	return memberRows(out, e)
}

// memberRows adds a row for each member of an etcd cluster.
func memberRows(out status.Section, e *etcd.Status) status.Section {
	if e == nil {
		return out
	}
	for _, m := range e.Members {
		row := status.Row{Name: "member " + m.Name, State: "follower", Detail: m.Peer}
		switch {
		case m.Leader:
			row.State = "leader"
		case m.Unreachable && m.Name == "":
			row.Name, row.State = "member without a name", "not started"
			row.Detail += ", it joined and has not started; it is taken out some minutes after it joined, or at once by " +
				"`umiak server forget " + m.Peer + "`"
		case m.Unreachable:
			row.State = "unreachable"
			row.Detail += ", 2380/tcp; if it is lost for good: `umiak server forget " + m.Name + "`"
		case m.Learner:
			row.State = "learner"
		}
		if m.Self {
			row.Detail += ", this server"
		}
		out.Rows = append(out.Rows, row)
	}
	return out
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
