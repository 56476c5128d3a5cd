package dns_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/agent/dataplane/dns"
	"github.com/umiak-io/umiak/internal/testing/eventually"
)

// hold binds a port at all addresses, as a DNS server of the host does.
func hold(t testing.TB, port int) (release func()) {
	t.Helper()
	var closers []func() error
	release = func() {
		for _, c := range closers {
			_ = c()
		}
		closers = nil
	}
	t.Cleanup(release)
	for _, network := range []string{"4", "6"} {
		addr := fmt.Sprintf("0.0.0.0:%d", port)
		if network == "6" {
			addr = fmt.Sprintf("[::]:%d", port)
		}
		// A server that has been stopped may still be closing its sockets.
		eventually.True(t, "listening at tcp "+addr, func() bool {
			l, err := net.Listen("tcp"+network, addr)
			if err == nil {
				closers = append(closers, l.Close)
			}
			return err == nil
		})
		eventually.True(t, "listening at udp "+addr, func() bool {
			u, err := net.ListenPacket("udp"+network, addr)
			if err == nil {
				closers = append(closers, u.Close)
			}
			return err == nil
		})
	}
	return release
}

func answersEverybody(t *testing.T) {
	t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		for _, server := range []string{clusterDNS, clusterDNS6, dns.AddrV4.String(), dns.AddrV6.String()} {
			if got := text(ask(t, server, network, "web.default.svc.cluster.local.",
				mdns.TypeA)); !strings.Contains(got, "10.43.1.1") {
				t.Errorf("the host asks %s over %s and gets %s", server, network, got)
			}
		}
		for _, server := range []string{clusterDNS, clusterDNS6} {
			inPod(t, func() {
				if got := text(ask(t, server, network, "web.default.svc.cluster.local.",
					mdns.TypeA)); !strings.Contains(got, "10.43.1.1") {
					t.Errorf("a pod asks %s over %s and gets %s", server, network, got)
				}
			})
		}
	}
}

// TestHostHasPort53: a DNS server of the host that listens on all addresses, before or after, is in nobody's way.
func TestHostHasPort53(t *testing.T) {
	release := hold(t, 53)
	w := newWorld(t, "", objects()...)
	stop := w.run(t)
	w.synced(t)
	answersEverybody(t)
	release()
	hold(t, 53)() // and the other way round: it can be bound while we run

	// A client that asks again and again from one port is answered over a restart that changes the port.
	conn, err := net.Dial("udp", net.JoinHostPort(clusterDNS, "53"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	question := func() error {
		c := &mdns.Conn{Conn: conn}
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		q := new(mdns.Msg).SetQuestion("web.default.svc.cluster.local.", mdns.TypeA)
		if err := c.WriteMsg(q); err != nil {
			return err
		}
		for {
			a, err := c.ReadMsg()
			if err != nil {
				return err
			}
			if a.Id == q.Id && len(a.Answer) == 1 {
				return nil
			}
		}
	}
	if err := question(); err != nil {
		t.Fatal(err)
	}
	stop()
	hold(t, 225)
	w.run(t)
	w.synced(t)
	answersEverybody(t)
	if err := question(); err != nil {
		t.Errorf("the same socket after a restart on another port: %v", err)
	}
}

// TestOneBadZoneIsLeftOut: what cannot be used of coredns-custom keeps out itself alone, and is named.
func TestOneBadZoneIsLeftOut(t *testing.T) {
	w := newWorld(t, "", objects()...)
	w.run(t)
	says := func(zone string) string {
		return zone + " {\n template IN TXT {\n  answer \"{{ .Name }} 1 IN TXT yes\"\n }\n}\n"
	}
	cm := &core.ConfigMap{ObjectMeta: meta.ObjectMeta{Name: "coredns-custom", Namespace: "kube-system"},
		Data: map[string]string{
			"a.server": says("one.example") + "# a remark\nbad.example {\n errors\n nosuchplugin x\n}\n" +
				says("two.example"),
			"b.server":      says("three.example") + "setup.example {\n errors\n cache 0\n}\n",
			"c.server":      "open.example {\n errors\n",
			"d.server":      says("one.example"),
			"e.server":      "env.example {\n forward . {$HOME}\n}\n",
			"f.server":      says("four.example:53") + "port.example:5353 {\n errors\n}\n",
			"log.override":  "log\n",
			"many.override": "template IN TXT over.example {\n answer \"over.example. 1 IN TXT yes\"\n}\nrewrite nonsense\n",
		}}
	if _, err := w.client.CoreV1().ConfigMaps("kube-system").Create(t.Context(), cm, meta.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.one.example.", "a.two.example.", "a.three.example.", "a.four.example.",
		"over.example."} {
		eventually.True(t, name, func() bool {
			return text(ask(t, clusterDNS, "udp", name, mdns.TypeTXT)) == name+` TXT "yes"`
		})
	}
	const of = "ConfigMap kube-system/coredns-custom, key "
	for _, want := range []string{
		of + "a.server, line 9: Unknown directive 'nosuchplugin'",
		of + "b.server, line 8: plugin/cache: ",
		of + "c.server, line 2: ",
		of + "d.server, line 1: server block \"one.example\": another block serves this zone already",
		of + "e.server, line 2: \"{$HOME}\": environment variables cannot be used",
		of + "f.server, line 6: server block \"port.example:5353\": only port 53 is served on a node",
		of + "many.override, line 4: plugin/rewrite: ",
	} {
		found := false
		for _, r := range w.server.Section(t.Context()).Rows {
			found = found || r.Name == "coredns-custom" && strings.HasPrefix(r.Detail, want)
		}
		if !found {
			t.Errorf("status does not say %q:\n%v", want, w.server.Section(t.Context()).Rows)
		}
	}
	events := map[string]bool{}
	for len(events) < 7 {
		select {
		case e := <-w.events.Events:
			events[e] = true
		case <-time.After(20 * time.Second):
			t.Fatalf("events: %v", events)
		}
	}
}
