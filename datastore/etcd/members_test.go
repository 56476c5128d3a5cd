package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/testing/storetest"
)

// three starts a cluster of three members.
func (c *cluster) three() (a, b, d *member) {
	c.t.Helper()
	a = c.start(c.config("a"))
	join := func(name string) *member {
		cfg := c.config(name)
		eventually.Nil(c.t, "the cluster", func() (err error) {
			cfg.Join, err = a.AddLearner(c.t.Context(), name, cfg.Peer)
			return err
		})
		return c.start(cfg)
	}
	return a, join("b"), join("d")
}

// TestAllMembersMove starts all members with addresses that are not in the member list. The status of each names the
// others; once one has their addresses (Moved), the cluster works as before.
func TestAllMembersMove(t *testing.T) {
	c := newCluster(t)
	a, b, d := c.three()
	rev, err := storetest.Create(t.Context(), dial(t, a), "/k", "v")
	if err != nil {
		t.Fatal(err)
	}
	all := []*member{a, b, d}
	for _, m := range all {
		m.stop()
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan string, 3), make(chan error, 3)
	var moved []*etcd.Server
	for _, m := range all {
		cfg := m.cfg
		cfg.Peer, cfg.Join = freePort(t), nil
		m.cfg = cfg
		s, err := etcd.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		moved = append(moved, s)
		go func() { done <- errors.Join(s.Run(ctx, func() { ready <- cfg.Name }), s.Close()) }()
	}
	t.Cleanup(func() {
		cancel()
		for range all {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	eventually.Nil(t, "the cluster", func() error {
		what := etcd.Remedy(moved[0].Status().Members)
		for _, want := range []string{"1 of 3", "b at ", "d at ", "umiak server moved b=ADDRESS d=ADDRESS"} {
			if !strings.Contains(what, want) {
				return fmt.Errorf("status says %q, want %s", what, want)
			}
		}
		return nil
	})
	if err := moved[0].Moved("b", d.cfg.Peer); err != nil { // a wrong address does no harm
		t.Fatal(err)
	}
	if err := moved[0].Moved("x", d.cfg.Peer); !errors.Is(err, etcd.ErrNoMember) {
		t.Errorf("an unknown member: %v", err)
	}
	for _, m := range all[1:] {
		if err := moved[0].Moved(m.cfg.Name, m.cfg.Peer); err != nil {
			t.Fatal(err)
		}
	}
	for range all {
		select {
		case <-ready:
		case <-time.After(time.Minute):
			t.Fatalf("not all are ready: %+v", moved[0].Status())
		}
	}
	eventually.Nil(t, "the cluster", func() error {
		for _, s := range moved {
			for i, m := range s.Members() {
				if m.Unreachable || m.Peer != map[string]string{"a": a.cfg.Peer, "b": b.cfg.Peer,
					"d": d.cfg.Peer}[m.Name] {
					return fmt.Errorf("member %d is %+v", i, m)
				}
			}
		}
		return nil
	})
	if r, err := dial(t, &member{Server: moved[2]}).Get(t.Context(), "/k"); err != nil || len(r.Kvs) != 1 ||
		r.Kvs[0].ModRevision != rev {
		t.Errorf("afterwards: %v, %v", r, err)
	}
}

// TestForget checks that a member that is lost or has never started can be removed by name or address, and that a
// member that is needed cannot.
func TestForget(t *testing.T) {
	c := newCluster(t)
	a, b, d := c.three()
	late := freePort(t)
	eventually.Nil(t, "the cluster", func() error { // etcd adds a member only when all are connected
		_, err := a.AddLearner(t.Context(), "late", late)
		return err
	})
	if _, err := a.Forget(t.Context(), "b"); !errors.Is(err, etcd.ErrHealthy) {
		t.Errorf("a member that answers: %v", err)
	}
	if _, err := a.AddLearner(t.Context(), "b", freePort(t)); !errors.Is(err, etcd.ErrTaken) || len(a.Members()) != 4 {
		t.Errorf("another machine with the name of a member that answers: %v, %+v", err, a.Members())
	}
	if _, err := a.Forget(t.Context(), "nobody"); !errors.Is(err, etcd.ErrNoMember) {
		t.Errorf("nobody: %v", err)
	}
	if m, err := a.Forget(t.Context(), late); err != nil || m.Name != "" {
		t.Errorf("a learner that never started: %+v, %v", m, err)
	}
	// A learner that nobody forgets is removed by the leader, which may be any of the three.
	eventually.Nil(t, "the cluster", func() error {
		_, err := b.AddLearner(t.Context(), "late", late)
		return err
	})
	eventually.Nil(t, "the cluster", func() error {
		for _, m := range []*member{a, b, d} {
			if n := len(m.Members()); n != 4 {
				return fmt.Errorf("%s knows %d members", m.cfg.Name, n)
			}
		}
		return nil
	})
	first := map[*member]map[uint64]time.Time{a: {}, b: {}, d: {}}
	now := time.Now()
	turn := func(now time.Time) {
		for m, f := range first {
			m.RemoveStaleAt(t.Context(), f, now)
		}
	}
	turn(now)
	turn(now.Add(etcd.StartTimeout - time.Second))
	if n := len(a.Members()); n != 4 {
		t.Errorf("%d members before StartTimeout is over", n)
	}
	eventually.Nil(t, "the cluster", func() error {
		turn(now.Add(etcd.StartTimeout + time.Second))
		if n := len(a.Members()); n != 3 {
			return fmt.Errorf("%d members", n)
		}
		return nil
	})
	d.stop()
	eventually.Nil(t, "the cluster", func() error {
		m, err := a.Forget(t.Context(), "d")
		if err == nil && m.Name != "d" {
			err = fmt.Errorf("forgot %+v", m)
		}
		return err
	})
	b.stop()
	eventually.Nil(t, "the cluster", func() error {
		_, err := a.Forget(t.Context(), "b")
		if err == nil {
			t.Fatal("a member was removed without a majority")
		}
		if !strings.Contains(err.Error(), "b at "+b.cfg.Peer) {
			return err
		}
		return nil
	})
}
