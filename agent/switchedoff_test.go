package agent

import (
	"context"
	"errors"
	"reflect"
	"testing"

	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/status"
)

// TestSwitchedOff: the node has neither proxy nor policies where the servers say so, and removes what is left of them
// before it is ready.
func TestSwitchedOff(t *testing.T) {
	a := newAgent(t, nil)
	n := &node{facts: clusterFacts{Cluster: Cluster{KubeProxyOff: true, NetworkPolicyOff: true}}}
	proxy, err := a.newProxy(n)
	if err != nil {
		t.Fatal(err)
	}
	policies, err := a.newPolicies(n)
	if err != nil {
		t.Fatal(err)
	}
	for want, got := range map[string]reportingPart{"disable-kube-proxy": proxy, "disable-network-policy": policies} {
		if rows := got.Section(t.Context()).Rows; !reflect.DeepEqual(rows,
			[]status.Row{{Name: "rules", State: "off", Detail: want}}) {
			t.Errorf("%s: %+v", want, rows)
		}
	}
	if got := n.facts.routedServices(); got != nil {
		t.Errorf("routes to Services: %v", got)
	}
	if got := a.policySocket(n.facts); got != "" {
		t.Errorf("pods are announced at %s", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	removed := false
	o := switchedOff{"x", "disable-x", func(context.Context) error { removed = true; return nil }}
	if err := o.Run(ctx, func() {
		if !removed {
			t.Error("ready before the leftovers are removed")
		}
		cancel()
	}); err != nil {
		t.Error(err)
	}
	o.remove = func(context.Context) error { return errors.New("busy") }
	if err := o.Run(t.Context(), func() { t.Error("ready") }); err == nil {
		t.Error("no error")
	}
}

// TestFollowFacts: the process executes itself again when the cluster has other settings for nodes than those with which
// the parts were made, and not for those that are followed.
func TestFollowFacts(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Cluster)
		anew   bool
	}{
		"nothing":            {func(*Cluster) {}, false},
		"external addresses": {func(c *Cluster) { c.ExternalIPs = c.ClusterCIDR }, false},
		"another proxy":      {func(c *Cluster) { c.KubeProxyOff = true }, true},
		"another network":    {func(c *Cluster) { c.FlannelBackend = "none" }, true},
	} {
		a := newAgent(t, nil) // whose Facts are cluster()
		was := cluster()
		c.change(&was)
		a.stage.SetNode(&node{facts: clusterFacts{Cluster: was}})
		ctx, cancel := context.WithCancel(t.Context())
		err := a.followFacts(ctx, cancel)
		var anew *lifecycle.ReexecError
		if errors.As(err, &anew) != c.anew {
			t.Errorf("%s: %v", name, err)
		}
	}
}
