package nft

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"testing"

	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

func config(f rules.Family) rules.Config {
	pods := "10.42.0.0/16"
	if f == rules.IPv6 {
		pods = "fd42::/56"
	}
	return rules.Config{Family: f, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(pods)}}
}

func addr(f rules.Family, net, n int) netip.Addr {
	if f == rules.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf("fd%02d::%x", net, n+1))
	}
	return netip.AddrFrom4([4]byte{10, byte(net), byte((n + 1) >> 8), byte(n + 1)})
}

func service(f rules.Family, n, eps int) rules.ServicePort {
	s := rules.ServicePort{Name: fmt.Sprintf("default/svc-%d:http/TCP", n), Protocol: rules.TCP,
		ClusterIP: addr(f, 43, n), Port: 80}
	for i := range eps {
		s.Cluster = append(s.Cluster, netip.AddrPortFrom(addr(f, 42, n*2+i), 8080))
	}
	return s
}

func list(t testing.TB, f rules.Family) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "table", f.String(), rules.TableName).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestFirst(t *testing.T) {
	for _, f := range []rules.Family{rules.IPv4, rules.IPv6} {
		t.Run(f.String(), func(t *testing.T) {
			c := nettest.Alone(t)
			b := rules.NewBuilder(config(f))
			for i := range 3 {
				b.Set(service(f, i, i))
			}
			s := service(f, 3, 2)
			s.Affinity = 3600
			s.NodePort = 30003
			s.LoadBalancerIPs = []netip.Addr{addr(f, 99, 1)}
			s.SourceRanges = []netip.Prefix{netip.PrefixFrom(addr(f, 7, 1), 24)}
			s.ExternalLocal = true
			b.Set(s)
			tb, err := NewTable(c, config(f))
			if err != nil {
				t.Fatal(err)
			}
			got, err := tb.Sync(context.Background(), b)
			if err != nil {
				t.Fatal(err)
			}
			if !got.Replaced {
				t.Fatal(got)
			}
			b.Flush()
			t.Log(list(t, f))
			again, err := tb.Sync(context.Background(), b)
			if err != nil || again != (Synced{}) {
				t.Fatalf("%+v %v", again, err)
			}
			for e := range b.All() {
				t.Log(config(f).Line(e))
			}
		})
	}
}
