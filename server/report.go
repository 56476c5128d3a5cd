package server

import (
	"context"
	"fmt"
	"maps"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/datastore/external"
	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/manifests"
	"github.com/umiak-io/umiak/server/addons"
	"github.com/umiak-io/umiak/server/cluster/leader"
)

// runManifests keeps the packaged manifests and the user's applied.
func (s *Server) runManifests(ctx context.Context, ready func()) error {
	vars, err := manifests.Vars(s.cfg.ClusterDomain, s.cfg.DNS())
	if err != nil {
		return err
	}
	name := s.cfg.NodeName
	rc, err := s.ownConfig()
	if err != nil {
		return err
	}
	c, err := addons.New(addons.Config{
		Dir: s.dirs.Manifests(), Embedded: manifests.FS, Vars: vars, Disable: s.cfg.Disable,
		Server: name, Node: !s.cfg.DisableAgent, Alone: s.others == nil, Left: s.hasLeft, REST: rc, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.manifests.Store(c)
	return c.Run(ctx, ready)
}

// hasLeft says whether another server is no part of the cluster any more: it is no member of etcd, or, where the servers share
// a database, its node is gone.
func (s *Server) hasLeft(ctx context.Context, name string, node bool) (bool, error) {
	if cluster := s.EtcdCluster(); cluster != nil {
		return !slices.ContainsFunc(cluster.Members(), func(m etcd.Member) bool { return m.Name == name }), nil
	}
	if !node {
		return false, nil
	}
	client, err := s.client("umiak-manifests", electionTimeout)
	if err != nil {
		return false, err
	}
	_, err = client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	return false, err
}

// Sources are the server's sections of `umiak status`.
func (s *Server) Sources() []status.Source {
	return []status.Source{s.componentRows, s.datastoreRows, s.snapshots.Section, s.certificateRows, s.tunnels.Status, s.webhookRows, func(ctx context.Context) status.Section {
		if c := s.manifests.Load(); c != nil {
			return c.Section(ctx)
		}
		return status.Section{Name: "Manifests"}
	}}
}

func (s *Server) componentRows(ctx context.Context) status.Section {
	out := status.Section{Name: "Components"}
	for _, c := range s.health.Report(ctx) {
		row := status.Row{Name: c.Name, State: "healthy", Detail: c.Message}
		if !c.Healthy {
			row.State = status.Unhealthy
		}
		out.Rows = append(out.Rows, row)
	}
	if notes := s.tokenNotes.Load(); notes != nil {
		for id, note := range *notes {
			out.Rows = append(out.Rows, status.Row{Name: id + " token", State: "look at this", Detail: note})
		}
	}
	if s.election != nil {
		elected := s.election.Leader()
		row := status.Row{Name: "controllers and scheduler", State: "elsewhere", Detail: "on server " + elected}
		switch elected {
		case s.etcdName():
			row.State, row.Detail = "here", ""
		case "":
			row.State, row.Detail = "nowhere", "no server is known to run them: the lease "+leader.Lease+" has no holder or cannot be read"
		}
		out.Rows = append(out.Rows, row)
		failing := s.election.Failing()
		for _, name := range slices.Sorted(maps.Keys(failing)) {
			out.Rows = append(out.Rows, status.Row{Name: name, State: "failing", Detail: failing[name] + "; it is tried again"})
		}
	}
	return out
}

func (s *Server) certificateRows(context.Context) status.Section {
	out := status.Section{Name: "Certificates"}
	for _, r := range s.pki.Rotations() {
		out.Rows = append(out.Rows, status.Row{Name: "rotation of " + r.Name, State: "under way", Detail: "old and new are trusted; `umiak certificate rotate-ca --status` says what comes next"})
	}
	for _, c := range s.pki.Certificates() {
		row := status.Row{Name: c.Name, State: "ends " + c.Ends.UTC().Format("2006-01-02")}
		switch {
		case c.Error != "":
			row.Detail = c.Error
		case !c.Renews.IsZero():
			row.Detail = "renewed by itself on " + c.Renews.UTC().Format("2006-01-02")
		}
		out.Rows = append(out.Rows, row)
	}
	return out
}

// unprotected says what is wrong with the way to a database outside, empty if nothing is.
func (s *Server) unprotected() string {
	dc := s.datastoreConfig()
	return external.Unprotected(dc.Endpoint, dc.TLS)
}

func (s *Server) datastoreRows(ctx context.Context) status.Section {
	out := status.Section{Name: "Datastore"}
	if why := s.unprotected(); why != "" {
		out.Rows = append(out.Rows, status.Row{Name: "way to the database", State: "look at this", Detail: why + ": who stands between can change everything in the cluster; set datastore-cafile"})
	}
	st := s.datastore()
	if st == nil {
		return out
	}
	d, err := st.Status(ctx)
	if err != nil {
		out.Rows = append(out.Rows, status.Row{Name: "datastore", State: status.Unhealthy, Detail: err.Error()})
		return memberRows(out, d.Etcd)
	}
	if q := d.SQLite; q != nil {
		row := status.Row{Name: d.Backend, State: "healthy", Detail: fmt.Sprintf("%s, write-ahead log %s, revision %d, compacted to %d",
			mebibytes(q.FileBytes), mebibytes(q.WALBytes), q.Revision, q.CompactRevision)}
		if q.LastError != "" {
			row.State, row.Detail = status.Unhealthy, q.LastError
		}
		out.Rows = append(out.Rows, row)
		if q.Recovery != nil {
			out.Rows = append(out.Rows, status.Row{Name: "recovery", State: "look at this", Detail: fmt.Sprintf("%s; %d revisions kept, %d lost; the damaged files are in %s", q.Recovery.Reason, q.Recovery.Rows, q.Recovery.LostRows, q.Recovery.Kept)})
		}
	}
	if v := d.Volatile; v != nil {
		out.Rows = append(out.Rows, status.Row{Name: "in memory", State: "healthy",
			Detail: fmt.Sprintf("leases and events: %d keys, %s", v.Keys, mebibytes(v.Bytes))})
	}
	if e := d.External; e != nil {
		out.Rows = append(out.Rows, status.Row{Name: e.Kind, State: "healthy", Detail: fmt.Sprintf("%s, revision %d", e.Address, e.Revision)})
	}
	return etcdRows(out, d.Etcd)
}

// etcdRows adds the rows of an etcd member.
func etcdRows(out status.Section, e *etcd.Status) status.Section {
	if e == nil {
		return out
	}
	row := status.Row{Name: "etcd", State: "healthy", Detail: fmt.Sprintf("%s, %s of it in use, revision %d", mebibytes(e.FileBytes), mebibytes(e.InUseBytes), e.Revision)}
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
			row.Detail += ", it joined and has not started; it is taken out some minutes after it joined, or at once by `umiak server forget " + m.Peer + "`"
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
