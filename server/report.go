package server

import (
	"context"
	"maps"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/datastore/etcd"
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
	rc, err := s.clients.Config("umiak-manifests")
	if err != nil {
		return err
	}
	c, err := addons.New(addons.Config{
		Dir: s.dirs.Manifests(), Embedded: manifests.FS, Vars: vars, Disable: s.cfg.Disable,
		Server: name, Node: !s.cfg.DisableAgent, Alone: !s.cluster.Several(), Left: s.hasLeft, REST: rc, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.manifests.Store(c)
	return c.Run(ctx, ready)
}

// nodeTimeout bounds one request about a node.
const nodeTimeout = 5 * time.Second

// hasLeft says whether another server is no part of the cluster any more: it is no member of etcd, or, where the servers share
// a database, its node is gone.
func (s *Server) hasLeft(ctx context.Context, name string, node bool) (bool, error) {
	if cluster := s.store.Etcd(); cluster != nil {
		return !slices.ContainsFunc(cluster.Members(), func(m etcd.Member) bool { return m.Name == name }), nil
	}
	if !node {
		return false, nil
	}
	client, err := s.clients.Client("umiak-manifests", nodeTimeout)
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
	return []status.Source{s.componentRows, s.runner.Section, s.snapshots.Section, s.certificateRows, s.tunnels.Section, s.webhookRows, func(ctx context.Context) status.Section {
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
	if s.cluster.Several() {
		elected := s.cluster.Election.Leader()
		row := status.Row{Name: "controllers and scheduler", State: "elsewhere", Detail: "on server " + elected}
		switch elected {
		case s.cfg.NodeName:
			row.State, row.Detail = "here", ""
		case "":
			row.State, row.Detail = "nowhere", "no server is known to run them: the lease "+leader.Lease+" has no holder or cannot be read"
		}
		out.Rows = append(out.Rows, row)
		failing := s.cluster.Election.Failing()
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
