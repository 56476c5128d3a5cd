package tunnel_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	agenttunnel "github.com/umiak-io/umiak/agent/tunnel"
	"github.com/umiak-io/umiak/internal/testing/testns"
	"github.com/umiak-io/umiak/server/pki"
	"github.com/umiak-io/umiak/server/tunnel"
)

const (
	prefix, group = "umiak:agent:", "umiak:agents"
	podIP         = "10.42.1.5" // of a pod of the node n1
	bridgeIP      = "10.42.1.1" // of the node n1, in its pods' range
)

// TestMain gives the tests a network namespace of their own, in which there are addresses of pods.
func TestMain(m *testing.M) {
	os.Exit(testns.Run(func() int {
		if err := addresses(); err != nil {
			fmt.Fprintln(os.Stderr, "set up loopback (needs root):", err)
			return 1
		}
		return m.Run()
	}))
}

func addresses() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	errs := []error{netlink.LinkSetUp(lo)}
	for _, a := range []string{podIP, bridgeIP} {
		addr, err := netlink.ParseAddr(a + "/32")
		errs = append(errs, err, netlink.AddrAdd(lo, addr))
	}
	return errors.Join(errs...)
}

// world is the keys of a cluster.
type world struct {
	dir string
	pki *pki.PKI
	// authorities is what nodes answer that are asked for them; nil as of an older release.
	authorities func(context.Context, string) (string, time.Time, error)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	p, err := pki.Ensure(pki.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{dir: dir, pki: p}
	w.leaf(t, pki.Leaf{Name: "serving", CA: pki.ServerCA, CommonName: "kube-apiserver", Server: true,
		DNSNames: []string{"kubernetes"}, IPs: []string{"127.0.0.1"}})
	w.agent(t, "n1")
	return w
}

func (w *world) leaf(t *testing.T, l pki.Leaf) tls.Certificate {
	t.Helper()
	l.CertFile, l.KeyFile = w.pki.File(l.Name+".crt"), w.pki.File(l.Name+".key")
	if err := w.pki.Add(l); err != nil {
		t.Fatal(err)
	}
	c, err := tls.LoadX509KeyPair(l.CertFile, l.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (w *world) agent(t *testing.T, node string) tls.Certificate {
	return w.leaf(t, pki.Leaf{Name: node, CA: pki.ClientCA, CommonName: prefix + node, Organization: []string{group}})
}

// server is what an API server is to tunnels.
type server struct {
	*tunnel.Tunnels
	addr string
	stop func()
}

func (w *world) server(t *testing.T, addr string, change ...func(*tunnel.Identity)) *server {
	t.Helper()
	id := tunnel.Identity{ClientCA: w.pki.CACert(pki.ClientCA)}
	for _, f := range change {
		f(&id)
	}
	tunnels := tunnel.NewTunnels(id, logger(t))
	cert, err := tls.LoadX509KeyPair(w.pki.File("serving.crt"), w.pki.File("serving.key"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", addr, &tls.Config{Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tunnels.Run(ctx, func() {}) }()
	srv := &http.Server{Handler: tunnels, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	go func() { _ = srv.Serve(l) }()
	s := &server{Tunnels: tunnels, addr: l.Addr().String()}
	s.stop = sync.OnceFunc(func() {
		_ = srv.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.stop)
	return s
}

// node is an agent and its kubelet, which sends back what it is sent.
type node struct {
	*agenttunnel.Tunnels
	kubelet string
	servers *list
	stop    func()
}

// list is a list of servers that changes.
type list struct {
	mu      sync.Mutex
	now     []string
	changed chan struct{}
}

func (l *list) get() ([]string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now, l.changed
}

func (l *list) set(now ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.now, l.changed = now, make(chan struct{})
}

func (w *world) node(t *testing.T, name, kubelet string, dial func(context.Context, string, string) (net.Conn, error),
	servers ...string) *node {
	t.Helper()
	n := &node{kubelet: kubelet, servers: &list{now: servers, changed: make(chan struct{})}}
	n.Tunnels = agenttunnel.New(agenttunnel.Config{
		Servers: n.servers.get, ServerCA: w.pki.CACert(pki.ServerCA), Cert: w.pki.File(name + ".crt"),
		Key: w.pki.File(name + ".key"),
		Allow: agenttunnel.Allow{
			Node: name, Kubelet: netip.MustParseAddrPort(kubelet),
			PodRanges: func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("10.42.1.0/24")} },
			Addresses: func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr(bridgeIP)}, nil },
		},
		Dial: dial, Log: logger(t), Authorities: w.authorities,
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx, func() {}) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

// logger writes to the test's log, also after its end.
func logger(t *testing.T) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("test", t.Name())
}

// listen serves each connection with f until the test ends.
func listen(t *testing.T, addr string, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	return l.Addr().String()
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

// within fails the test when f does not come to an end in time.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, errors.New("not in time"))
	t.Cleanup(cancel)
	return ctx
}

func wait(t *testing.T, s *server, node string, d time.Duration) {
	t.Helper()
	if err := s.Wait(within(t, d), node); err != nil {
		t.Fatalf("%s has no tunnel to %s: %v", node, s.addr, err)
	}
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

// answers sends a line to the node's kubelet and wants it back.
func answers(t *testing.T, s *server, n *node, name string) {
	t.Helper()
	if err := ask(within(t, 15*time.Second), s, name, net.JoinHostPort(name, port(n.kubelet)), "hello "+
		name); err != nil {
		t.Fatal(err)
	}
}

func ask(ctx context.Context, s *server, node, addr, line string) error {
	c, err := s.Dial(ctx, node, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := io.WriteString(c, line); err != nil {
		return err
	}
	buf := make([]byte, len(line))
	if _, err := io.ReadFull(c, buf); err != nil {
		return err
	}
	if string(buf) != line {
		return fmt.Errorf("got %q", buf)
	}
	return nil
}

// cable is a TCP proxy to one server that can go dead without a word.
type cable struct {
	target string
	mu     sync.Mutex
	cut    chan struct{} // closed: what runs over it stands still for ever
	conns  []net.Conn
}

func newCable(t *testing.T, target string) *cable {
	c := &cable{target: target, cut: make(chan struct{})}
	t.Cleanup(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, x := range c.conns {
			_ = x.Close()
		}
	})
	return c
}

// kill makes all connections that there are stand still, and new ones work.
func (c *cable) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.cut)
	c.cut = make(chan struct{})
}

func (c *cable) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	out, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.target)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	in, err := l.Accept()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	cut := c.cut
	c.conns = append(c.conns, in, out)
	c.mu.Unlock()
	forward := func(to, from net.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			select {
			case <-cut:
				return // neither data nor the end arrive
			default:
			}
			if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
				_ = to.Close()
				_ = from.Close()
				return
			}
		}
	}
	go forward(out, in)
	go forward(in, out)
	return near, nil
}
