package dns

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/reconcile"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

// TestWhoIsAnswered: pods and the node itself are, a neighbour on the wire that sends the cluster's address here is
// not, and one client cannot take all connections and answers.
func TestWhoIsAnswered(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for what, mod := range map[string]func(*layout){
		"our network": func(l *layout) { l.podInterface = "cni0" },
		"another's":   func(l *layout) { l.nodeIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")} },
		"another proxy": func(l *layout) {
			l.podInterface, l.endpoints = "cni0", true
			l.nodeIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fd02::1")}
		},
		"before, anyone": nil,
	} {
		t.Run(what, func(t *testing.T) {
			node, a, b, lan := nettest.New(t, "node"), nettest.New(t, "a"), nettest.New(t, "b"), nettest.New(t, "lan")
			node.Bridge(t, "cni0", "10.42.0.1/24", "fd42::1/112")
			node.Bridge(t, "eth0", "192.0.2.1/24", "fd02::1/64")
			for i, p := range []*nettest.Host{a, b} {
				p.Plug(t, "eth0", node, "cni0", fmt.Sprintf("10.42.0.%d/24", 11+i), fmt.Sprintf("fd42::%d/112", 11+i))
				p.Route(t, "0.0.0.0/0", "10.42.0.1")
				p.Route(t, "::/0", "fd42::1")
			}
			lan.Plug(t, "eth0", node, "eth0", "192.0.2.2/24", "fd02::2/64")
			lan.Route(t, "10.43.0.10/32", "192.0.2.1")
			lan.Route(t, "fd43::a/128", "fd02::1")
			node.Sysctl(t, "net/ipv4/ip_forward", "1")
			node.Sysctl(t, "net/ipv6/conf/all/forwarding", "1")
			l := layout{addrs: []netip.Addr{netip.MustParseAddr("10.43.0.10"), netip.MustParseAddr("fd43::a")},
				port:   firstPort,
				limits: limits{connections: 20, queries: 1, burst: 10}}
			if mod != nil {
				mod(&l)
			}
			var limited bool
			var err error
			node.Do(func() {
				if err = setupAddresses(l.addrs); err == nil {
					limited, err = l.apply(t.Context(), reconcile.NewTables(slog.Default(), []string{Table}))
				}
			})
			if err != nil || !limited {
				t.Fatal(limited, err)
			}
			held := hold(t, node)
			asked := []string{"10.43.0.10:53", "[fd43::a]:53"}
			if l.endpoints {
				asked = append([]string{"192.0.2.1:225", "[fd02::1]:225"}, asked...) // before limits are reached
			}
			for _, to := range asked {
				for from, want := range map[*nettest.Host]bool{a: true, node: true, lan: mod == nil} {
					for _, network := range []string{"tcp", "udp"} {
						within := nettest.Patience
						if !want {
							within = nettest.Silence
						}
						if got := from.Answer(t, network, to, within); (got == "yes") != want {
							t.Errorf("%s %s %s: %q", from.Name, network, to, got)
						}
					}
				}
				if mod == nil || !strings.HasSuffix(to, ":53") {
					continue
				}
				held.queries.Store(0)
				// One client keeps connections open and asks on and on.
				held.keep(true)
				refused := 0
				a.Do(func() {
					for range 22 {
						c, err := net.DialTimeout("tcp", to, nettest.Silence)
						if err != nil {
							refused++
							continue
						}
						t.Cleanup(func() { _ = c.Close() })
					}
				})
				if refused < 2 || refused > 4 { // those before may not be quite over
					t.Errorf("%s: %d of 22 connections were refused", to, refused)
				}
				held.keep(false)
				begun := time.Now()
				a.Do(func() {
					c, err := net.Dial("udp", to)
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					for range 1000 {
						_, _ = c.Write([]byte("?"))
					}
				})
				for _, network := range []string{"tcp", "udp"} {
					if got := b.Answer(t, network, to, nettest.Patience); got != "yes" {
						t.Errorf("another client, %s %s: %q", network, to, got)
					}
				}
				// One more query a second is allowed, and the others' are counted as well.
				if n := held.queries.Swap(0); n > 20+int64(time.Since(begun).Seconds()) {
					t.Errorf("%s: %d queries arrived", to, n)
				}
			}
		})
	}
}

// holder stands for CoreDNS: it answers "yes", or keeps connections open.
type holder struct {
	keeps   atomic.Bool
	queries atomic.Int64
}

func (h *holder) keep(yes bool) { h.keeps.Store(yes) }

func hold(t *testing.T, node *nettest.Host) *holder {
	h := &holder{}
	node.Do(func() {
		for _, a := range []netip.Addr{AddrV4, AddrV6} {
			at := netip.AddrPortFrom(a, firstPort).String()
			nettest.ServeTCP(t, at, func(c net.Conn) {
				if h.keeps.Load() {
					_, _ = io.Copy(io.Discard, c)
					return
				}
				nettest.Say("yes")(c)
			})
			network := "udp4"
			if a.Is6() {
				network = "udp6"
			}
			nettest.ServeUDP(t, network, at, func(string, netip.Addr) string {
				h.queries.Add(1)
				return "yes"
			})
		}
	})
	return h
}
