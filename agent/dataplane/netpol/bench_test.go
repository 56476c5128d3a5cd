package netpol

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/agent/dataplane/netpol/rules"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

// The cluster of the benchmarks: pods of 50 namespaces, 20 apps in each, one pod in ten here, and policies
// that let one app reach another on two ports, beside one block of addresses.
func benchPod(i int) rules.Pod {
	return rules.Pod{Namespace: fmt.Sprintf("ns-%d", i%50), Name: fmt.Sprintf("pod-%d", i), Local: i%10 == 0,
		Labels: labels.Set{"app": fmt.Sprintf("app-%d", i/50%20), "pod-template-hash": fmt.Sprint(i % 7)},
		Addrs:  []netip.Addr{netip.AddrFrom4([4]byte{10, 42, byte(i >> 8), byte(i)})},
		Ports:  []rules.NamedPort{{Name: "http", Protocol: ruleset.TCP, Port: 8080}}}
}

func benchPolicy(i int) rules.Policy {
	app := func(n int) labels.Selector {
		return labels.SelectorFromSet(labels.Set{"app": fmt.Sprintf("app-%d", n%20)})
	}
	p := rules.Policy{Namespace: fmt.Sprintf("ns-%d", i%50), Name: fmt.Sprintf("np-%d", i), Pods: app(i / 50),
		Isolates: [2]bool{true, i%2 == 0}}
	ports := []rules.Port{{Protocol: ruleset.TCP, From: 8080, To: 8080},
		{Protocol: ruleset.TCP, From: 9000, To: uint16(9000 + i%5)}}
	p.Rules[rules.Ingress] = []rules.Rule{
		{Peers: []rules.Peer{{Pods: app(i/50 + 1)},
			{Block: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i % 20), 0}), 24)}}, Ports: ports},
		{Peers: []rules.Peer{{Pods: app(i/50 + 2),
			Namespaces: labels.SelectorFromSet(labels.Set{"kubernetes.io/metadata.name": fmt.Sprintf("ns-%d",
				(i+1)%50)})}}},
	}
	p.Rules[rules.Egress] = []rules.Rule{{Peers: []rules.Peer{{Pods: app(i/50 + 1)}},
		Ports: []rules.Port{{Protocol: ruleset.TCP, Name: "http"}}}}
	return p
}

func benchCluster(pods, policies int) *rules.Builder {
	b := rules.NewBuilder(ruleset.IPv4)
	for i := range 50 {
		b.SetNamespace(fmt.Sprintf("ns-%d", i), labels.Set{"kubernetes.io/metadata.name": fmt.Sprintf("ns-%d", i)})
	}
	for i := range policies {
		b.SetPolicy(benchPolicy(i))
	}
	for i := range pods {
		b.SetPod(benchPod(i))
	}
	return b
}

var benchSizes = []struct{ pods, policies int }{{100, 10}, {1000, 100}, {1000, 1000}, {10000, 1000}}

// BenchmarkOnePod measures a pod that comes, until the kernel has its policies, or that goes.
func BenchmarkOnePod(b *testing.B) {
	for _, n := range benchSizes {
		for _, where := range []string{"here", "elsewhere"} {
			b.Run(fmt.Sprintf("pods=%d/policies=%d/%s", n.pods, n.policies, where), func(b *testing.B) {
				conn := nettest.Alone(b)
				bd := benchCluster(n.pods, n.policies)
				t := newTable(conn, ruleset.IPv4)
				if _, err := t.sync(context.Background(), bd); err != nil {
					b.Fatal(err)
				}
				bd.Flush()
				i := 0
				for b.Loop() {
					p := benchPod(i / 2 % 50)
					p.Name, p.Local, p.Addrs = "new", where == "here", []netip.Addr{netip.AddrFrom4([4]byte{10, 43, 0,
						1})}
					if i%2 == 0 {
						bd.SetPod(p)
					} else {
						bd.DeletePod(p.Namespace, p.Name)
					}
					if err := t.apply(context.Background(), bd.Flush()[ruleset.IPv4]); err != nil {
						b.Fatal(err)
					}
					i++
				}
			})
		}
	}
}

// BenchmarkOnePolicy measures a policy that changes.
func BenchmarkOnePolicy(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprintf("pods=%d/policies=%d", n.pods, n.policies), func(b *testing.B) {
			conn := nettest.Alone(b)
			bd := benchCluster(n.pods, n.policies)
			t := newTable(conn, ruleset.IPv4)
			if _, err := t.sync(context.Background(), bd); err != nil {
				b.Fatal(err)
			}
			bd.Flush()
			i := 0
			for b.Loop() {
				p := benchPolicy(3)
				p.Rules[rules.Ingress][0].Ports[0].To += uint16(i%2) * 10
				bd.SetPolicy(p)
				if err := t.apply(context.Background(), bd.Flush()[ruleset.IPv4]); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

// BenchmarkBuild measures everything from nothing: the rules, and with the kernel.
func BenchmarkBuild(b *testing.B) {
	for _, n := range benchSizes {
		name := fmt.Sprintf("pods=%d/policies=%d/", n.pods, n.policies)
		b.Run(name+"rules", func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			bd := benchCluster(n.pods, n.policies)
			bd.Flush()
			runtime.GC()
			runtime.ReadMemStats(&after)
			for b.Loop() {
				benchCluster(n.pods, n.policies).Flush()
			}
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1024, "KiB-held")
			runtime.KeepAlive(bd)
		})
		b.Run(name+"kernel", func(b *testing.B) {
			conn := nettest.Alone(b)
			bd := benchCluster(n.pods, n.policies)
			t := newTable(conn, ruleset.IPv4)
			for b.Loop() {
				if _, err := t.Replace(context.Background(), desired{bd, t.Family}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"adopt", func(b *testing.B) {
			conn := nettest.Alone(b)
			bd := benchCluster(n.pods, n.policies)
			t := newTable(conn, ruleset.IPv4)
			if _, err := t.Replace(context.Background(), desired{bd, t.Family}); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if s, err := t.sync(context.Background(), bd); err != nil || s != (netfilter.Result{}) {
					b.Fatal(s, err)
				}
			}
		})
	}
}

// BenchmarkVerdict measures what an open connection costs when conntrack is looked through.
func BenchmarkVerdict(b *testing.B) {
	bd := benchCluster(1000, 1000)
	src, dst := netip.MustParseAddr("10.42.0.51"), netip.MustParseAddr("10.42.0.100")
	for b.Loop() {
		bd.Verdict(rules.Packet{Src: src, Dst: dst, Protocol: ruleset.TCP, Port: 8080})
	}
}
