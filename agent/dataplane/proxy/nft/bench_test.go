package nft

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

func filled(b testing.TB, n int) *rules.Builder {
	bd := rules.NewBuilder(config(rules.IPv4))
	for i := range n {
		bd.Set(service(rules.IPv4, i, 2))
	}
	bd.Flush()
	return bd
}

var sizes = []int{10, 100, 1000, 5000, 10000}

// BenchmarkFullSync writes the whole table anew, in one transaction.
func BenchmarkFullSync(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := nettest.Alone(b)
			bd := filled(b, n)
			t, err := NewTable(c, bd.Config())
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := t.Replace(context.Background(), desired{t.cfg, bd}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkAdopt reads a table that is as it should be.
func BenchmarkAdopt(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := nettest.Alone(b)
			bd := filled(b, n)
			t, _ := NewTable(c, bd.Config())
			if _, err := t.Sync(context.Background(), bd); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if s, err := t.Sync(context.Background(), bd); err != nil || s != (Synced{}) {
					b.Fatal(s, err)
				}
			}
		})
	}
}

// benchChange measures a change of one Service, from its new endpoints until the kernel has it.
func benchChange(b *testing.B, watched bool, change func(s *rules.ServicePort, i int)) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := nettest.Alone(b)
			if watched {
				w, err := netfilter.NewWatcher(c, rules.TableName)
				if err != nil {
					b.Fatal(err)
				}
				ctx, cancel := context.WithCancel(context.Background())
				b.Cleanup(cancel)
				go func() { _ = w.Run(ctx, func(netfilter.Touch) {}) }()
			}
			bd := filled(b, n)
			three := service(rules.IPv4, n+1, 3) // so that the class is there
			bd.Set(three)
			bd.Flush()
			t, _ := NewTable(c, bd.Config())
			if _, err := t.Sync(context.Background(), bd); err != nil {
				b.Fatal(err)
			}
			i := 0
			for b.Loop() {
				i++
				s := service(rules.IPv4, i%n, 2)
				change(&s, i)
				bd.Set(s)
				if err := t.Apply(context.Background(), bd.Flush()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkReplaceEndpoint(b *testing.B) {
	benchChange(b, true, func(s *rules.ServicePort, i int) {
		s.Cluster[1] = netip.AddrPortFrom(addr(rules.IPv4, 44, i%60000), 8080)
	})
}

func BenchmarkAddEndpoint(b *testing.B) {
	benchChange(b, true, func(s *rules.ServicePort, i int) {
		s.Cluster = append(s.Cluster, netip.AddrPortFrom(addr(rules.IPv4, 44, i%60000), 8080))
	})
}
