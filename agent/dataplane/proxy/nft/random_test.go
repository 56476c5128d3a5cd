package nft

import (
	"context"
	"errors"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
	"github.com/umiak-io/umiak/internal/testing/nettest"
	"github.com/umiak-io/umiak/internal/testing/rulestest"
)

// kernelEquals reads every element and every rule, and compares with what a fresh build wants.
func kernelEquals(t testing.TB, tb *Table, b *rules.Builder) {
	t.Helper()
	if s, err := tb.Compare(b); err != nil || s != (Synced{}) {
		t.Fatalf("the table differs: %v: %+v", err, s)
	}
}

// sorted is the table as nft lists it, without the order of sets, which is that of their making, nor that
// of elements, which is that of a hash.
func sorted(t testing.TB, f rules.Family) []string {
	out := strings.FieldsFunc(strings.Join(strings.Fields(list(t, f)), " "),
		func(r rune) bool { return r == ',' || r == '{' || r == '}' })
	for i := range out {
		out[i] = strings.TrimSpace(out[i])
	}
	slices.Sort(out)
	return out
}

func TestRandomIncrementsInTheKernel(t *testing.T) {
	for _, f := range []rules.Family{rules.IPv4, rules.IPv6} {
		t.Run(f.String(), func(t *testing.T) {
			conn := nettest.Alone(t)
			r := rand.New(rand.NewPCG(7, uint64(f)))
			b := rules.NewBuilder(config(f))
			tb, err := NewTable(conn, config(f))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tb.Sync(context.Background(), b); err != nil {
				t.Fatal(err)
			}
			now := map[string]rules.ServicePort{}
			for step := range 150 {
				for range 1 + r.IntN(8) {
					s := rulestest.Random(r, f, r.IntN(40))
					if r.IntN(4) == 0 {
						b.Delete(s.Name)
						delete(now, s.Name)
					} else {
						b.Set(s)
						now[s.Name] = s
					}
				}
				if err := tb.Apply(context.Background(), b.Flush()); err != nil {
					t.Fatalf("step %d: %v", step, err)
				}
				if step%10 == 0 {
					kernelEquals(t, tb, b)
				}
			}
			kernelEquals(t, tb, b)
			grown := sorted(t, f)
			fresh := rules.NewBuilder(config(f))
			for _, s := range now {
				fresh.Set(s)
			}
			if _, err := tb.Replace(context.Background(), desired{tb.cfg, fresh}); err != nil {
				t.Fatal(err)
			}
			if made := sorted(t, f); !slices.Equal(grown, made) {
				t.Fatalf("nft lists\n%q\nafter increments and\n%q\nmade anew", grown, made)
			}
		})
	}
}

// TestSyncRepairs: whatever others did to the table, a Sync makes it right, with no more than is needed.
func TestSyncRepairs(t *testing.T) {
	conn := nettest.Alone(t)
	f := rules.IPv4
	b := rules.NewBuilder(config(f))
	r := rand.New(rand.NewPCG(3, 3))
	for i := range 50 {
		b.Set(rulestest.Random(r, f, i))
	}
	b.Set(service(f, 200, 3))
	tb, _ := NewTable(conn, config(f))
	if _, err := tb.Sync(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	nft := func(args string) { nettest.NFT(t, args) }
	nft("add table ip other")
	nft("add chain ip other keep")
	nft("add rule ip other keep counter")
	for _, c := range []struct {
		args     string
		replaced bool
	}{
		{"flush map ip umiak-proxy services-3", false},
		{"flush set ip umiak-proxy cluster-ips", false},
		{"delete element ip umiak-proxy cluster-ips { 10.43.0.201 }", false},
		{"add element ip umiak-proxy cluster-ips { 10.43.9.9 }", false},
		{"flush chain ip umiak-proxy services", false},
		{"insert rule ip umiak-proxy services drop", false},
		{"add chain ip umiak-proxy more", false},
		{"add set ip umiak-proxy more { type ipv4_addr; }", false},
		{"add chain ip umiak-proxy filter-input { policy drop; }", true},
		{"flush table ip umiak-proxy", false},
		{"delete table ip umiak-proxy", true},
	} {
		nft(c.args)
		s, err := tb.Sync(context.Background(), b)
		if err != nil || s.Replaced != c.replaced || s == (Synced{}) {
			t.Fatalf("%s: %+v %v", c.args, s, err)
		}
		kernelEquals(t, tb, b)
	}
	// A process of today finds what one of yesterday left, with other Services.
	for i := range 20 {
		b.Set(rulestest.Random(r, f, i))
	}
	b.Delete("default/svc-200:http/TCP")
	b.Flush()
	next, _ := NewTable(conn, config(f))
	if s, err := next.Sync(context.Background(), b); err != nil || s.Replaced || s.Added == 0 {
		t.Fatalf("adopt: %+v %v", s, err)
	}
	kernelEquals(t, next, b)
	if out, err := exec.Command("nft", "list", "table", "ip", "other").CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "counter") {
		t.Fatalf("another table was touched: %v %s", err, out)
	}
	if err := conn.Remove(context.Background(), rules.TableName); err != nil {
		t.Fatal(err)
	}
	if err := conn.Remove(context.Background(), rules.TableName); err != nil {
		t.Fatalf("delete twice: %v", err)
	}
	if out, _ := exec.Command("nft", "list", "ruleset").CombinedOutput(); strings.Contains(string(out),
		rules.TableName) {
		t.Fatalf("left: %s", out)
	}
}

// TestARefusedBatchChangesNothing: one bad element among good ones.
func TestARefusedBatchChangesNothing(t *testing.T) {
	conn := nettest.Alone(t)
	f := rules.IPv4
	b := filled(t, 20)
	tb, _ := NewTable(conn, b.Config())
	if _, err := tb.Sync(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	before := sorted(t, f)
	b.Set(service(f, 50, 2))
	c := b.Flush()
	// is there already
	c.Add = append(c.Add, rules.Elem{Class: rules.Class{Set: rules.ClusterIPs}, Key: "\x0a\x2b\x00\x01"})
	if err := tb.Apply(context.Background(), c); !errors.Is(err, unix.EEXIST) {
		t.Fatalf("got %v", err)
	}
	if !slices.Equal(before, sorted(t, f)) {
		t.Fatal("half of a refused batch is in the kernel")
	}
	if s, err := tb.Sync(context.Background(), b); err != nil || s.Replaced {
		t.Fatalf("repair: %+v %v", s, err)
	}
	kernelEquals(t, tb, b)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b.Set(service(f, 51, 2))
	if err := tb.Apply(ctx, b.Flush()); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

func TestWatcher(t *testing.T) {
	conn := nettest.Alone(t)
	w, err := netfilter.NewWatcher(conn, rules.TableName)
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx, func(netfilter.Touch) { heard <- struct{}{} }) }()
	b := filled(t, 2000)
	tb, _ := NewTable(conn, b.Config())
	if _, err := tb.Sync(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	b.Set(service(rules.IPv4, 5, 3))
	if err := tb.Apply(context.Background(), b.Flush()); err != nil {
		t.Fatal(err)
	}
	nft := func(args string) {
		if out, err := exec.Command("nft", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	nft("add table ip other")
	nft("add set ip other s { type ipv4_addr; }")
	for _, args := range []string{"add element ip umiak-proxy cluster-ips { 10.43.99.9 }",
		"flush chain ip umiak-proxy services", "flush ruleset"} {
		// Ours and those of another table were not heard: the first that is, comes after this.
		select {
		case <-heard:
			t.Fatalf("heard something before %q", args)
		default:
		}
		nft(args)
		select {
		case <-heard:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s was not heard", args)
		}
		if _, err := tb.Sync(context.Background(), b); err != nil {
			t.Fatal(err)
		}
		kernelEquals(t, tb, b)
		for len(heard) > 0 {
			<-heard
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

// TestStepsLeaveNoGap: whatever has endpoints before and after a change has some after each step of it.
func TestStepsLeaveNoGap(t *testing.T) {
	f := rules.IPv4
	r := rand.New(rand.NewPCG(5, 5))
	b := rules.NewBuilder(config(f))
	there := map[rules.Class]map[string]bool{}
	has := func(base string, set rules.SetID) bool {
		for class, keys := range there {
			if class.Set == set && keys[base+"\x00\x00\x00\x00"] {
				return true
			}
		}
		return false
	}
	two := 0
	for range 500 {
		for range 1 + r.IntN(5) {
			if s := rulestest.Random(r, f, r.IntN(20)); r.IntN(6) == 0 {
				b.Delete(s.Name)
			} else {
				b.Set(s)
			}
		}
		c := b.Flush()
		type place struct {
			base string
			set  rules.SetID
		}
		stays := map[place]bool{}
		for e := range b.All() {
			if p := (place{e.Key[:max(0, len(e.Key)-4)], e.Set}); e.Set < rules.NumSources && has(p.base, p.set) {
				stays[p] = true
			}
		}
		all := steps(c)
		if len(all) == 2 {
			two++
		}
		for _, step := range all {
			for _, e := range step.Del {
				delete(there[e.Class], e.Key)
			}
			for _, x := range step.DelClass {
				delete(there, x)
			}
			for _, e := range step.Add {
				if there[e.Class] == nil {
					there[e.Class] = map[string]bool{}
				}
				there[e.Class][e.Key] = true
			}
			for p := range stays {
				if !has(p.base, p.set) {
					t.Fatalf("nothing leads from %x after a step", p.base)
				}
			}
		}
	}
	if two == 0 {
		t.Fatal("nothing moved")
	}
}
