package netpol

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/agent/dataplane/netpol/rules"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

// listed is the table as nft lists it, without the order of sets, which is that of their making, nor that
// of elements, which is that of a hash.
func listed(t testing.TB, f ruleset.Family) []string {
	t.Helper()
	raw, err := exec.Command("nft", "list", "table", f.String(), rules.TableName).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	out := strings.FieldsFunc(strings.Join(strings.Fields(string(raw)), " "),
		func(r rune) bool { return r == ',' || r == '{' || r == '}' })
	for i := range out {
		out[i] = strings.TrimSpace(out[i])
	}
	slices.Sort(out)
	return out
}

// inKernel reads everything and compares with what is wanted.
func inKernel(t testing.TB, tb *table, b *rules.Builder) {
	t.Helper()
	c, ok, err := tb.Diff(desired{b, tb.Family})
	if err != nil || !ok || !c.Empty() {
		t.Fatalf("table %s differs: %v %v %+v", tb.Family, ok, err, c)
	}
}

func TestIncrementsInTheKernel(t *testing.T) {
	conn := nettest.Alone(t)
	for seed := range 4 {
		r := chance{rand.New(rand.NewPCG(uint64(seed), 3))}
		c, b := newCluster(), rules.NewBuilder(both...)
		tables := map[ruleset.Family]*table{}
		if err := conn.Remove(context.Background(), rules.TableName); err != nil {
			t.Fatal(err)
		}
		for _, f := range both {
			tables[f] = newTable(conn, f)
			if s, err := tables[f].sync(context.Background(), b); err != nil || !s.Replaced {
				t.Fatal(s, err)
			}
		}
		b.Flush()
		for step := range 120 {
			for range 1 + r.IntN(6) {
				c.step(r, b)
			}
			changes := b.Flush()
			for _, f := range both {
				if err := tables[f].apply(context.Background(), changes[f]); err != nil {
					t.Fatalf("seed %d step %d: %v\n%+v", seed, step, err, changes[f])
				}
				if step%10 == 0 {
					inKernel(t, tables[f], b)
				}
			}
		}
		for _, f := range both {
			inKernel(t, tables[f], b)
			grown := listed(t, f)
			if _, err := tables[f].Replace(context.Background(), desired{c.fresh(), f}); err != nil {
				t.Fatal(err)
			}
			if made := listed(t, f); !slices.Equal(grown, made) {
				t.Fatalf("nft lists\n%q\nafter increments and\n%q\nmade anew", grown, made)
			}
		}
	}
}

// TestManyExceptionsInTheKernel: exceptions of IPv6 do not become ranges, of which the kernel would make up to 250
// prefixes each.
func TestManyExceptionsInTheKernel(t *testing.T) {
	conn := nettest.Alone(t)
	for _, f := range both {
		block, base := "0.0.0.0/0", netip.MustParseAddr("10.0.0.0")
		if f == ruleset.IPv6 {
			block, base = "::/0", netip.MustParseAddr("fd42::")
		}
		peer := rules.Peer{Block: netip.MustParsePrefix(block)}
		for i := range 5000 {
			raw := base.AsSlice()
			raw[len(raw)-3], raw[len(raw)-2], raw[len(raw)-1] = byte(i>>8), byte(i), byte(7*i)
			a, _ := netip.AddrFromSlice(raw)
			peer.Except = append(peer.Except, netip.PrefixFrom(a, a.BitLen()))
		}
		b, tb := rules.NewBuilder(f), newTable(conn, f)
		if _, err := tb.sync(context.Background(), b); err != nil {
			t.Fatal(err)
		}
		b.Flush()
		b.SetPolicy(rules.Policy{Namespace: "ns", Name: "p", Isolates: [2]bool{true, true},
			Rules: [2][]rules.Rule{{{Peers: []rules.Peer{peer}}}}})
		if refused := b.Refused(); refused != nil {
			t.Fatal(refused)
		}
		elems := 0
		for s := range b.Sets() {
			for range b.Elems(f, s.Name) {
				elems++
			}
		}
		if elems > len(peer.Except)+1 {
			t.Errorf("%s: %d exceptions are %d elements", f, len(peer.Except), elems)
		}
		if err := tb.apply(context.Background(), b.Flush()[f]); err != nil {
			t.Fatal(err)
		}
		inKernel(t, tb, b)
	}
}

// TestSyncRepairs: whatever others did to the table, a sync makes it right, with no more than is needed.
func TestSyncRepairs(t *testing.T) {
	conn := nettest.Alone(t)
	r := chance{rand.New(rand.NewPCG(9, 9))}
	c, b := newCluster(), rules.NewBuilder(both...)
	for range 200 {
		c.step(r, b)
	}
	setNamespace(c, b, "ns0")
	setPolicy(b, parsePolicy(t, `{"metadata": {"namespace": "ns0", "name": "fixed"}, "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}], "ports": [{"port": 80, "endPort": 90}]}]}}`))
	p := parsePod(t, `{"metadata": {"namespace": "ns0", "name": "fixed"}, "spec": {"nodeName": "here"}, "status": {"phase": "Running", "podIPs": [{"ip": "10.42.0.250"}]}}`)
	setPod(b, p)
	f := ruleset.IPv4
	tb := newTable(conn, f)
	if _, err := tb.sync(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	b.Flush()
	nft := func(args string) { nettest.NFT(t, args) }
	nft("add table ip other")
	nft("add chain ip other keep")
	nft("add rule ip other keep counter")
	for _, x := range []struct {
		args     string
		replaced bool
	}{
		{"flush set ip umiak-policy known", false},
		{"flush map ip umiak-policy ingress", false},
		{"delete element ip umiak-policy known { 10.42.0.250 }", false},
		{"add element ip umiak-policy isolated { 10.42.9.9 }", false},
		{"flush chain ip umiak-policy in-ns0/fixed", false},
		{"insert rule ip umiak-policy in-ns0/fixed drop", false},
		{"add chain ip umiak-policy more", false},
		{"add set ip umiak-policy more { type ipv4_addr; }", false},
		{"insert rule ip umiak-policy filter-ingress accept", false},
		{"flush chain ip umiak-policy filter-egress", false},
		{"flush table ip umiak-policy", false},
		{"delete table ip umiak-policy", true},
	} {
		nft(x.args)
		s, err := tb.sync(context.Background(), b)
		if err != nil || s.Replaced != x.replaced {
			t.Fatalf("%s: %+v %v", x.args, s, err)
		}
		inKernel(t, tb, b)
	}
	// A process of today finds what one of yesterday left, with other pods and policies.
	for range 50 {
		c.step(r, b)
	}
	b.Flush()
	next := newTable(conn, f)
	if s, err := next.sync(context.Background(), b); err != nil || s.Replaced {
		t.Fatalf("adopt: %+v %v", s, err)
	}
	inKernel(t, next, b)
	if out, err := exec.Command("nft", "list", "table", "ip", "other").CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "counter") {
		t.Fatalf("another table was touched: %v %s", err, out)
	}
	for range 2 {
		if err := next.Conn.Remove(context.Background(), rules.TableName); err != nil {
			t.Fatal(err)
		}
	}
}

// TestARefusedBatchChangesNothing: one bad element among good ones.
func TestARefusedBatchChangesNothing(t *testing.T) {
	conn := nettest.Alone(t)
	r := chance{rand.New(rand.NewPCG(4, 4))}
	c, b := newCluster(), rules.NewBuilder(both...)
	for range 100 {
		c.step(r, b)
	}
	tb := newTable(conn, ruleset.IPv6)
	if _, err := tb.sync(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	b.Flush()
	for range 20 {
		c.step(r, b)
	}
	ranges, change := b.Flush()[ruleset.IPv6].Ranges()
	if err := tb.apply(context.Background(), ranges); err != nil {
		t.Fatal(err)
	}
	before := listed(t, ruleset.IPv6)
	for e := range b.Elems(ruleset.IPv6, "known") {
		change.Specs["known"] = ruleset.SetSpec{Name: "known", Key: []ruleset.Field{ruleset.Addr}}
		change.Add = append(change.Add, e, e) // twice
		break
	}
	if err := tb.apply(context.Background(), change); !errors.Is(err, unix.EEXIST) {
		t.Fatalf("got %v", err)
	}
	if !slices.Equal(before, listed(t, ruleset.IPv6)) {
		t.Fatal("half of a refused batch is in the kernel")
	}
	if s, err := tb.sync(context.Background(), b); err != nil || s.Replaced {
		t.Fatalf("repair: %+v %v", s, err)
	}
	inKernel(t, tb, b)
}
