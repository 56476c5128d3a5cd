package tunnel_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/tunnelwire"
	"github.com/umiak-io/umiak/server/pki"
	"github.com/umiak-io/umiak/server/tunnel"
)

func TestEveryServerReachesTheNode(t *testing.T) {
	w := newWorld(t)
	a, b := w.server(t, "127.0.0.1:0"), w.server(t, "127.0.0.1:0")
	n := w.node(t, "n1", listen(t, "127.0.0.1:0", echo), nil, a.addr, b.addr)
	pod := listen(t, podIP+":0", echo)
	for _, s := range []*server{a, b} {
		wait(t, s, "n1", 5*time.Second)
		answers(t, s, n, "n1")
		for _, addr := range []string{pod, "127.0.0.1:" + port(n.kubelet), bridgeIP + ":" + port(n.kubelet)} {
			if err := ask(within(t, 5*time.Second), s, "n1", addr, "x"); err != nil {
				t.Errorf("%s: %v", addr, err)
			}
		}
		if rows := s.Section(t.Context()).Rows; len(rows) != 1 || rows[0].Name != "n1" || rows[0].State != "open" {
			t.Errorf("status of the server: %+v", rows)
		}
	}
	if rows := n.Section(t.Context()).Rows; len(rows) != 2 || rows[0].State != "open" || rows[1].State != "open" {
		t.Errorf("status of the node: %+v", rows)
	}
	// A server is taken off the list, and comes back.
	n.servers.set(b.addr)
	eventually.True(t, "the tunnel to go", func() bool { return !a.Connected("n1") })
	answers(t, b, n, "n1")
	n.servers.set(a.addr, b.addr)
	wait(t, a, "n1", 5*time.Second)
	answers(t, a, n, "n1")
	if _, err := a.Dial(t.Context(), "n2", "n2:1"); !errors.Is(err, tunnel.ErrNoTunnel) {
		t.Errorf("a node that has none: %v", err)
	}
}

// noticed is the longest time until either end detects a dead connection; see package tunnelwire.
var noticed = 2 * tunnelwire.ServerEnd().SendPingTimeout

func TestADeadConnectionIsNoticedAndReplaced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.server(t, "127.0.0.1:0")
	line := newCable(t, s.addr)
	n := w.node(t, "n1", listen(t, "127.0.0.1:0", echo), line.dial, s.addr)
	wait(t, s, "n1", 5*time.Second)
	open, err := s.Dial(t.Context(), "n1", "n1:"+port(n.kubelet))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	line.kill()
	cut := time.Now()
	ctx := within(t, noticed+5*time.Second)
	for err = errors.New(""); err != nil && ctx.Err() == nil; {
		err = ask(ctx, s, "n1", "n1:"+port(n.kubelet), "again")
		if errors.Is(err, tunnel.ErrNoTunnel) {
			err = s.Wait(ctx, "n1")
			if err == nil {
				err = errors.New("once more")
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("healed after %v", time.Since(cut).Round(10*time.Millisecond))
	broken := make(chan error, 1)
	go func() {
		_, err := open.Read(make([]byte, 1))
		broken <- err
	}()
	select {
	case err := <-broken:
		if err == nil || errors.Is(err, io.EOF) {
			t.Errorf("a connection over the dead tunnel: %v", err)
		}
	case <-within(t, noticed+2*time.Second).Done():
		t.Error("a connection over the dead tunnel does not end")
	}
}

// The node has connected again before this end has noticed that the old connection is dead: a request that
// waits on the old one is asked on the new one at once.
func TestWhatWaitsIsAskedOnTheNewTunnel(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.server(t, "127.0.0.1:0")
	line := newCable(t, s.addr)
	kubelet := listen(t, "127.0.0.1:0", echo)
	var dialed atomic.Bool
	w.node(t, "n1", kubelet, func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dialed.Swap(true) {
			return nil, errors.New("unplugged") // nothing replaces this tunnel but the one of the second w.node
		}
		return line.dial(ctx, network, addr)
	}, s.addr)
	wait(t, s, "n1", 5*time.Second)
	line.kill()
	done := make(chan error, 1)
	go func() {
		done <- ask(within(t, noticed+5*time.Second), s, "n1", "n1:"+port(kubelet), "hello")
	}()
	w.node(t, "n1", kubelet, nil, s.addr)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := s.Sessions("n1"); n != 2 {
		t.Errorf("answered with %d tunnels: the request waited until the end of the old one was noticed", n)
	}
}

func TestTheNewestTunnelIsUsed(t *testing.T) {
	w := newWorld(t)
	s := w.server(t, "127.0.0.1:0")
	// Both have the same name; the kubelet's port, which each checks, tells them apart.
	first := w.node(t, "n1", listen(t, "127.0.0.1:0", echo), nil, s.addr)
	wait(t, s, "n1", 5*time.Second)
	reach := func(n *node) error {
		c, err := s.Dial(within(t, 5*time.Second), "n1", "n1:"+port(n.kubelet))
		if err != nil {
			return err
		}
		return c.Close()
	}
	if err := reach(first); err != nil {
		t.Fatal(err)
	}
	second := w.node(t, "n1", listen(t, "127.0.0.1:0", echo), nil, s.addr)
	eventually.Nil(t, "the tunnels", func() error { return reach(second) })
	if err := reach(first); err == nil {
		t.Error("the older tunnel was used")
	}
	second.stop()
	eventually.Nil(t, "the tunnels", func() error { return reach(first) })
}

func TestOnlyAgentsOfThisClusterAreTaken(t *testing.T) {
	w, stranger := newWorld(t), newWorld(t)
	s := w.server(t, "127.0.0.1:0")
	later := w.server(t, "127.0.0.1:0", func(i *tunnel.Identity) {
		i.Now = func() time.Time { return time.Now().Add(365 * 24 * time.Hour) }
	})
	get := func(s *server, protocol string, certs ...tls.Certificate) (int, string) {
		t.Helper()
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(w.pki.CAPEM(pki.ServerCA))
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if len(certs) == 0 {
					return &tls.Certificate{}, nil
				}
				return &certs[0], nil
			}}}
		defer tr.CloseIdleConnections()
		req, _ := http.NewRequestWithContext(within(t, 5*time.Second), http.MethodGet, "https://"+s.addr+
			tunnelwire.Path, nil)
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", protocol)
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusSwitchingProtocols {
			return resp.StatusCode, ""
		}
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	agent := w.agent(t, "n1")
	for _, tc := range []struct {
		name     string
		server   *server
		protocol string
		certs    []tls.Certificate
		want     int
		says     string
	}{
		{"an agent", s, tunnelwire.Protocol, []tls.Certificate{agent}, 101, ""},
		{"nobody", s, tunnelwire.Protocol, nil, 401, "client certificate"},
		{"another cluster's agent", s, tunnelwire.Protocol, []tls.Certificate{stranger.agent(t, "n1")}, 401,
			"not from this cluster"},
		{"an expired certificate", later, tunnelwire.Protocol, []tls.Certificate{agent}, 401, "clocks"},
		{"the kubelet", s, tunnelwire.Protocol,
			[]tls.Certificate{w.leaf(t, pki.Leaf{Name: "k", CA: pki.ClientCA, CommonName: "system:node:n1",
				Organization: []string{"system:nodes"}})}, 403, "not an agent's"},
		{"no group", s, tunnelwire.Protocol,
			[]tls.Certificate{w.leaf(t, pki.Leaf{Name: "g", CA: pki.ClientCA, CommonName: prefix + "n1"})}, 403,
			"not an agent's"},
		{"no name", s, tunnelwire.Protocol,
			[]tls.Certificate{w.leaf(t, pki.Leaf{Name: "e", CA: pki.ClientCA, CommonName: prefix,
				Organization: []string{group}})}, 403, "not an agent's"},
		{"a server's certificate", s, tunnelwire.Protocol,
			[]tls.Certificate{w.leaf(t, pki.Leaf{Name: "sv", CA: pki.ClientCA, CommonName: prefix + "n1",
				Organization: []string{group}, Server: true})}, 401, "not from this cluster"},
		{"another protocol", s, "websocket", []tls.Certificate{agent}, 426, tunnelwire.Protocol},
	} {
		if code, body := get(tc.server, tc.protocol, tc.certs...); code != tc.want || !strings.Contains(body, tc.says) {
			t.Errorf("%s: %d %q, want %d", tc.name, code, body, tc.want)
		}
	}
}

func TestANodeRefusesOtherAddresses(t *testing.T) {
	w := newWorld(t)
	s := w.server(t, "127.0.0.1:0")
	n := w.node(t, "n1", listen(t, "127.0.0.1:0", echo), nil, s.addr)
	wait(t, s, "n1", 5*time.Second)
	other := listen(t, "127.0.0.1:0", echo)
	host := listen(t, bridgeIP+":0", echo)
	for _, addr := range []string{other, host, "n2:" + port(n.kubelet), "n1:1", "localhost:" + port(n.kubelet),
		"10.42.2.5:80", "192.0.2.1:" + port(n.kubelet), "169.254.169.254:80", "[::1]:80"} {
		c, err := s.Dial(within(t, 5*time.Second), "n1", addr)
		if err == nil {
			_ = c.Close()
			t.Errorf("%s was allowed", addr)
		} else if !strings.Contains(err.Error(), "kubelet and its pods only") {
			t.Errorf("%s: %v", addr, err)
		}
	}
	// The tunnel is none the worse.
	answers(t, s, n, "n1")
	if rows := n.Section(t.Context()).Rows; len(rows) != 1 || !strings.Contains(rows[0].Detail, "9 refused") {
		t.Errorf("status: %+v", rows)
	}
	// What does not answer is said.
	if _, err := s.Dial(within(t, 5*time.Second), "n1", podIP+":1"); err == nil ||
		!strings.Contains(err.Error(), "refused") {
		t.Errorf("a closed port: %v", err)
	}
}

func TestAServerComesBack(t *testing.T) {
	w := newWorld(t)
	s := w.server(t, "127.0.0.1:0")
	n := w.node(t, "n1", listen(t, "127.0.0.1:0", echo), nil, s.addr)
	wait(t, s, "n1", 5*time.Second)
	answers(t, s, n, "n1")
	s.stop()
	if _, err := s.Dial(within(t, 5*time.Second), "n1", "n1:"+port(n.kubelet)); err == nil {
		t.Error("a server that has stopped still dials")
	}
	eventually.Nil(t, "the tunnels", func() error {
		if r := n.Section(t.Context()).Rows[0]; r.State == "open" || r.Detail == "" {
			return fmt.Errorf("status: %+v", r)
		}
		return nil
	})
	s = w.server(t, s.addr)
	wait(t, s, "n1", 8*time.Second)
	answers(t, s, n, "n1")
}

func TestACertificateIsReadAnew(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	s := w.server(t, "127.0.0.1:0")
	good, err := os.ReadFile(w.pki.File("n1.crt"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(w.pki.File("n1.key"))
	if err != nil {
		t.Fatal(err)
	}
	put := func(crt, key []byte) {
		t.Helper()
		if err := errors.Join(os.WriteFile(w.pki.File("n1.crt"), crt, 0o600),
			os.WriteFile(w.pki.File("n1.key"), key, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	bad, _ := os.ReadFile(other.pki.File("n1.crt"))
	badKey, _ := os.ReadFile(other.pki.File("n1.key"))
	put(bad, badKey)
	n := w.node(t, "n1", listen(t, "127.0.0.1:0", echo), nil, s.addr)
	eventually.Nil(t, "the tunnels", func() error {
		rows := n.Section(t.Context()).Rows
		if len(rows) != 1 || !strings.Contains(rows[0].Detail, "not from this cluster") {
			return fmt.Errorf("status: %+v", rows)
		}
		return nil
	})
	put(good, key)
	wait(t, s, "n1", 8*time.Second)
}

func TestManyConnectionsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.server(t, "127.0.0.1:0")
	n := w.node(t, "n1", listen(t, "127.0.0.1:0", echo), nil, s.addr)
	wait(t, s, "n1", 5*time.Second)
	g, ctx := errgroup.WithContext(within(t, time.Minute))
	for i := range 100 {
		g.Go(func() error {
			c, err := s.Dial(ctx, "n1", "n1:"+port(n.kubelet))
			if err != nil {
				return err
			}
			defer c.Close()
			sent := make([]byte, 300<<10+i)
			_, _ = rand.Read(sent)
			go func() { _, _ = c.Write(sent) }()
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(c, got); err != nil {
				return err
			}
			if !bytes.Equal(got, sent) {
				return fmt.Errorf("connection %d got something else than it sent", i)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	eventually.Nil(t, "the tunnels", func() error {
		if d := n.Section(t.Context()).Rows[0].Detail; !strings.Contains(d, " 0 connections") {
			return errors.New("connections are left: " + d)
		}
		if d := s.Section(t.Context()).Rows[0].Detail; !strings.Contains(d, " 0 connections") {
			return errors.New("connections are left: " + d)
		}
		return nil
	})
}

// A connection whose reader does not read holds up itself, in both directions, and no other.
func TestASlowReaderHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.server(t, "127.0.0.1:0")
	n := w.node(t, "n1", listen(t, "127.0.0.1:0", echo), nil, s.addr)
	release := make(chan struct{})
	defer close(release)
	deaf := listen(t, podIP+":0", func(net.Conn) { <-release })
	flood := listen(t, podIP+":0", func(c net.Conn) {
		for buf := make([]byte, 1<<20); ; {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
	wait(t, s, "n1", 5*time.Second)
	ctx := within(t, time.Minute)
	for range 20 {
		c, err := s.Dial(ctx, "n1", flood) // nobody reads it
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		d, err := s.Dial(ctx, "n1", deaf)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		// What the network takes is taken, then writing stops.
		if err := d.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		for buf := make([]byte, 1<<20); err == nil; {
			_, err = d.Write(buf)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	const size = 64 << 20
	began := time.Now()
	c, err := s.Dial(ctx, "n1", "n1:"+port(n.kubelet))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() { _, _ = io.CopyN(c, zeros{}, size) }()
	if _, err := io.CopyN(io.Discard, c, size); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB to the node and back beside 40 that stand still: %v", size>>20,
		time.Since(began).Round(time.Millisecond))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestAConnectionThroughTheTunnelIsOne(t *testing.T) {
	w := newWorld(t)
	s := w.server(t, "127.0.0.1:0")
	sums := make(chan [32]byte, 1)
	n := w.node(t, "n1", listen(t, "127.0.0.1:0", echo), nil, s.addr)
	sink := listen(t, podIP+":0", func(c net.Conn) {
		h := sha256.New()
		_, _ = io.Copy(h, c)
		sums <- [32]byte(h.Sum(nil))
	})
	source := listen(t, podIP+":0", func(c net.Conn) { _, _ = io.CopyN(c, zeros{}, 5<<20) })
	wait(t, s, "n1", 5*time.Second)
	ctx := within(t, 20*time.Second)

	t.Run("what was written before Close arrives", func(t *testing.T) {
		c, err := s.Dial(ctx, "n1", sink)
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 3<<20)
		_, _ = rand.Read(data)
		if _, err := c.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-sums:
			if got != sha256.Sum256(data) {
				t.Error("something is missing")
			}
		case <-ctx.Done():
			t.Fatal("the pod does not see the end")
		}
	})
	t.Run("all that was sent comes before the end", func(t *testing.T) {
		c, err := s.Dial(ctx, "n1", source)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if n, err := io.Copy(io.Discard, c); n != 5<<20 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
	t.Run("deadlines", func(t *testing.T) {
		c, err := s.Dial(ctx, "n1", "n1:"+port(n.kubelet))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, err = c.Read(make([]byte, 1))
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("got %v", err)
		}
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "y"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Errorf("after the deadline was taken away: %v", err)
		}
	})
	t.Run("a dial ends with its context", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		began := time.Now()
		// Nobody has this address, so the agent waits for an answer.
		if _, err := s.Dial(ctx, "n1", "10.42.1.77:80"); err == nil {
			t.Error("connected to nobody")
		}
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("took %v", d)
		}
	})
	t.Run("a connection outlives its dial's context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		c, err := s.Dial(ctx, "n1", "n1:"+port(n.kubelet))
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, "z")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	})
}
