package tunnel_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/umiak-io/umiak/internal/testing/eventually"
)

// TestNodesAreToldOfAuthorities: nodes that are connected and nodes that come are asked to have the authorities of now,
// again where they could not yet; what they have the server knows, and nothing of a node of an older release.
func TestNodesAreToldOfAuthorities(t *testing.T) {
	w := newWorld(t)
	w.agent(t, "n2")
	s := w.server(t, "127.0.0.1:0")
	var mu sync.Mutex
	has, failed := "one", false
	age := time.Now().Add(-time.Hour)
	w.authorities = func(_ context.Context, hash string) (string, time.Time, error) {
		mu.Lock()
		defer mu.Unlock()
		if hash == "three" && !failed {
			failed = true
			return has, age, errors.New("no server answers")
		}
		if hash != has {
			has, age = hash, time.Now()
		}
		return has, age, nil
	}
	kubelet := listen(t, "127.0.0.1:0", echo)
	first := w.node(t, "n1", kubelet, nil, s.addr)
	w.authorities = nil
	w.node(t, "n2", kubelet, nil, s.addr)
	for _, n := range []string{"n1", "n2"} {
		wait(t, s, n, 15*time.Second)
		if hash, _, ok := s.Authorities(n); ok {
			t.Errorf("%s has %s before it was asked", n, hash)
		}
	}
	becomes := func(want string, old bool) {
		t.Helper()
		for ctx := within(t, 20*time.Second); ; {
			hash, since, ok := s.Authorities("n1")
			if ok && hash == want && (time.Since(since) > time.Minute) == old {
				return
			}
			select {
			case <-ctx.Done():
				t.Fatalf("n1 has %q since %s (%v), want %q", hash, since, ok, want)
			case <-time.After(20 * time.Millisecond): // there is nothing to wait for but the answer
			}
		}
	}
	s.SetAuthorities("one")
	becomes("one", true)
	s.SetAuthorities("two")
	becomes("two", false)
	s.SetAuthorities("three") // which fails at first
	becomes("three", false)
	answers(t, s, first, "n1")
	if _, _, ok := s.Authorities("n2"); ok {
		t.Error("a node of an older release has answered")
	}
	// Another server learns it when the node comes.
	other := w.server(t, "127.0.0.1:0")
	other.SetAuthorities("four")
	first.servers.set(s.addr, other.addr)
	wait(t, other, "n1", 15*time.Second)
	s = other
	becomes("four", false)
}

// TestANodeThatFallsBackToAnOlderTunnelHasAnswered: what is known of a node does not hang on its newest tunnel.
func TestANodeThatFallsBackToAnOlderTunnelHasAnswered(t *testing.T) {
	w := newWorld(t)
	s := w.server(t, "127.0.0.1:0")
	w.authorities = func(_ context.Context, hash string) (string, time.Time, error) { return hash, time.Now(), nil }
	first := w.node(t, "n1", listen(t, "127.0.0.1:0", echo), nil, s.addr)
	wait(t, s, "n1", 15*time.Second)
	reach := func(n *node) error {
		c, err := s.Dial(within(t, 5*time.Second), "n1", "n1:"+port(n.kubelet))
		if err != nil {
			return err
		}
		return c.Close()
	}
	second := w.node(t, "n1", listen(t, "127.0.0.1:0", echo), nil, s.addr)
	eventually.Nil(t, "the tunnels", func() error { return reach(second) })
	s.SetAuthorities("one")
	has := func() error {
		if hash, _, ok := s.Authorities("n1"); !ok || hash != "one" {
			return fmt.Errorf("it has %q, %v", hash, ok)
		}
		return nil
	}
	eventually.Nil(t, "the tunnels", has)
	second.stop()
	eventually.Nil(t, "the tunnels", func() error { return reach(first) })
	eventually.Nil(t, "the tunnels", has)
}
