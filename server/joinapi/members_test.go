package joinapi

import (
	"crypto/x509/pkix"
	"net/netip"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/token"
)

// registry is an API that follows a cluster's Secrets, without certificates.
func registry(t *testing.T) (*API, *serving) {
	t.Helper()
	client := fake.NewClientset()
	tokens := Tokens{Client: client, CA: hash}
	cluster := joinwire.Cluster{ClusterCIDR: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		ServiceCIDR: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}}
	a := New(Config{Cluster: cluster, Self: "own", Own: func() string { return "192.0.2.100:6443" }, Log: quiet})
	known, stop, err := tokens.follow(t.Context(), func() {}, a.members)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	a.members.ask(client)
	s := &serving{tokens: tokens, known: known, since: time.Now()}
	a.ready.Store(s)
	return a, s
}

// joins has a node claim its name and register addresses with a key of its own.
func joins(t *testing.T, a *API, s *serving, name string, ips ...string) *node {
	t.Helper()
	if err := s.tokens.claim(t.Context(), name, "password of "+name, "", token.Agent, nil); err != nil {
		t.Fatal(err)
	}
	k := key(t)
	n := &node{name: name, ips: ips}
	var err error
	if n.kubelet, err = parseCSR(csr(t, k, pkix.Name{CommonName: "system:node:" +
		name, Organization: []string{"system:nodes"}}, nil), "system:node:"+name,
		[]string{"system:nodes"}); err != nil {
		t.Fatal(err)
	}
	n.agent = n.kubelet
	if err := a.register(t.Context(), s, n); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "the record of "+name, func() bool {
		has,
			_ := a.members.registered(name, netip.MustParseAddr(ips[0]), false)
		return has
	})
	return n
}

// TestAddressesAreOneNodes: of a node that lives nobody gets the address, of one that has ended the next one does,
// and two machines that have swapped theirs get them.
func TestAddressesAreOneNodes(t *testing.T) {
	a, s := registry(t)
	alive := func(name string, ago time.Duration) {
		t.Helper()
		at, d := metav1.NewMicroTime(time.Now().Add(-ago)), int32(40)
		l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: corev1.NamespaceNodeLease},
			Spec: coordinationv1.LeaseSpec{RenewTime: &at, LeaseDurationSeconds: &d}}
		leases := s.tokens.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
		_, err := leases.Create(t.Context(), l, metav1.CreateOptions{})
		if err != nil {
			_, err = leases.Update(t.Context(), l, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	has := func(node, ip string) bool {
		ok, _ := a.members.registered(node, netip.MustParseAddr(ip), false)
		return ok
	}
	n1, n2 := joins(t, a, s, "n1", "192.0.2.1"), joins(t, a, s, "n2", "192.0.2.2")
	alive("n2", 0)
	n1.ips = []string{"192.0.2.1", "192.0.2.2"}
	if err := a.register(t.Context(), s, n1); err == nil ||
		!strings.Contains(err.Error(), "that of node n2, which runs") {
		t.Errorf("another's address is registered: %v", err)
	}
	for ip, want := range map[string]bool{"192.0.2.1": true, "192.0.2.2": false, "192.0.2.3": false,
		"192.0.2.100": false, "10.43.0.1": false, "10.42.1.7": false, "127.0.0.1": false} {
		if err := a.Refuse(t.Context(), "n1", netip.MustParseAddr(ip), false); (err == nil) != want {
			t.Errorf("n1 reports %s: %v", ip, err)
		}
	}
	if err := a.Foreign(t.Context(), "n1", netip.MustParseAddr("192.0.2.2")); err == nil {
		t.Error("the overlay may reach n1 at another's address")
	}
	if err := a.Foreign(t.Context(), "n1", netip.MustParseAddr("192.0.2.3")); err != nil {
		t.Errorf("flannel-iface: %v", err)
	}
	if err := a.Refuse(t.Context(), "unrecorded", netip.MustParseAddr("192.0.2.3"), false); err != nil {
		t.Errorf("a node of an earlier release: %v", err)
	}
	if !a.Disputed("n1", netip.MustParseAddr("192.0.2.2")) || a.Disputed("n2", netip.MustParseAddr("192.0.2.2")) ||
		a.Disputed("n1", netip.MustParseAddr("192.0.2.9")) || !a.Disputed("n1", netip.MustParseAddr("10.43.0.99")) {
		t.Error("disputed addresses are not what they should be")
	}

	// A swap: who asks first gets nothing yet, but gives up what it has not any more.
	alive("n1", 0)
	n1.ips, n2.ips = []string{"192.0.2.2"}, []string{"192.0.2.1"}
	if err := a.register(t.Context(), s, n1); err == nil {
		t.Error("the address of a node that runs is given away")
	}
	eventually.True(t, "n1 gives up its address", func() bool { return !has("n1", "192.0.2.1") })
	if err := a.register(t.Context(), s, n2); err != nil {
		t.Errorf("an address that is free: %v", err)
	}
	eventually.True(t, "n2 has it", func() bool { return has("n2", "192.0.2.1") && !has("n2", "192.0.2.2") })
	if err := a.register(t.Context(), s, n1); err != nil {
		t.Errorf("the other half of the swap: %v", err)
	}
	eventually.True(t, "n1 has it", func() bool { return has("n1", "192.0.2.2") })

	// A machine that is gone.
	alive("n2", time.Hour)
	joins(t, a, s, "n3", "192.0.2.1")
	eventually.True(t, "n2 has it no more", func() bool { return !has("n2", "192.0.2.1") })
	events, err := s.tokens.Client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(events.Items) != 1 || events.Items[0].InvolvedObject.Name != "n2" {
		t.Errorf("%v, %v", events, err)
	}
	// A machine that was renamed is the same machine.
	alive("n3", 0)
	if err := s.tokens.claim(t.Context(), "renamed", "password of n3", "", token.Agent, nil); err != nil {
		t.Fatal(err)
	}
	if err := a.vacate(t.Context(), s, &node{name: "renamed", password: "password of n3"},
		netip.MustParseAddr("192.0.2.1")); err != nil {
		t.Errorf("a machine that was renamed does not get its own address: %v", err)
	}
	// One without a Lease is believed dead only when this server has been there long enough to know.
	joins(t, a, s, "n4", "192.0.2.4")
	if dead, err := a.dead(t.Context(), s, "n4"); err != nil || dead {
		t.Errorf("a node that has just joined: dead %v, %v", dead, err)
	}
}

// TestWhoIsAdmitted: a deleted node's certificate counts no more, nor that of a machine that had the name before.
func TestWhoIsAdmitted(t *testing.T) {
	a, s := registry(t)
	left := make(chan string, 10)
	a.OnLeave(func(node string) { left <- node })
	n := joins(t, a, s, "n1", "192.0.2.1")
	admits := func(node string, key []byte, local bool) error { return a.Admits(t.Context(), node, key, local) }
	own := n.kubelet.RawSubjectPublicKeyInfo
	if err := admits("n1", own, false); err != nil {
		t.Errorf("the node itself: %v", err)
	}
	if err := admits("n1", []byte("another's"), false); err == nil {
		t.Error("a machine that had the name before is admitted")
	}
	if err := admits("own", []byte("x"), true); err != nil {
		t.Errorf("this server's node: %v", err)
	}
	if err := admits("own", []byte("x"), false); err == nil {
		t.Error("this server's node from elsewhere")
	}
	// A node of an earlier release has no record: its name is enough.
	if err := s.tokens.claim(t.Context(), "early", "password", "", token.Agent, nil); err != nil {
		t.Fatal(err)
	}
	if err := admits("early", []byte("x"), false); err != nil {
		t.Errorf("a node of an earlier release: %v", err)
	}
	if _, err := s.tokens.Free(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "somebody is told", func() bool {
		select {
		case node := <-left:
			return node == "n1" && admits("n1", own, false) != nil
		default:
			return false
		}
	})
	if a.members.holder(netip.MustParseAddr("192.0.2.1")) != "" {
		t.Error("a deleted node keeps its address")
	}
	again := joins(t, a, s, "n1", "192.0.2.1")
	if err := admits("n1", own, false); err == nil {
		t.Error("the certificate of before is admitted again")
	}
	if err := admits("n1", again.kubelet.RawSubjectPublicKeyInfo, false); err != nil {
		t.Errorf("the node that has joined again: %v", err)
	}
}
