package apibalancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// echo is a server that says its name and then what it hears.
type echo struct {
	l     net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func newEcho(t *testing.T, addr, name string) *echo {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{l: l}
	t.Cleanup(e.kill)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			e.mu.Lock()
			e.conns = append(e.conns, c)
			e.mu.Unlock()
			go func() {
				_, _ = io.WriteString(c, name)
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return e
}

// hangUp ends its connections and takes others.
func (e *echo) hangUp() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.conns {
		_ = c.Close()
	}
}

// kill ends the server and its connections, as a process that dies.
func (e *echo) kill() {
	_ = e.l.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
}

func (e *echo) addr() string { return e.l.Addr().String() }

func start(t *testing.T, file, given string) (*Balancer, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	b, err := New(Config{Listen: addr, File: file, Given: given, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- b.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-ready
	return b, addr
}

// who connects and returns the server's name.
func who(t *testing.T, addr string) (string, net.Conn) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if errors.Is(err, syscall.ECONNRESET) {
		return "", nil // no server took it, and the reset was faster than this goroutine
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	name := make([]byte, 1)
	if _, err := io.ReadFull(c, name); err != nil {
		return "", c
	}
	return string(name), c
}

func TestNoClientSeesADeadServer(t *testing.T) {
	a, b, c := newEcho(t, "127.0.0.1:0", "a"), newEcho(t, "127.0.0.1:0", "b"), newEcho(t, "127.0.0.1:0", "c")
	file := filepath.Join(t.TempDir(), "servers.json")
	lb, addr := start(t, file, a.addr())
	if err := lb.Set([]string{a.addr(), b.addr(), c.addr()}); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for range 12 {
		name, _ := who(t, addr)
		seen[name]++
	}
	if seen["a"] != 4 || seen["b"] != 4 || seen["c"] != 4 {
		t.Errorf("connections are not spread: %v", seen)
	}
	name, conn := who(t, addr)
	alive := map[string]*echo{"a": a, "b": b, "c": c}
	alive[name].kill()
	delete(alive, name)
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a connection to a dead server goes on")
	}
	for range 20 {
		if got, _ := who(t, addr); alive[got] == nil {
			t.Fatalf("got %q, only %v are there", got, alive)
		}
	}
	// What was known is known after a restart.
	again, err := New(Config{File: file, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if list, _ := again.Servers(); len(list) != 3 {
		t.Errorf("kept: %q", list)
	}
}

// TestAServerThatIsAboutToGo: whoever loses a connection is not sent to the same server again.
func TestAServerThatIsAboutToGo(t *testing.T) {
	a, b := newEcho(t, "127.0.0.1:0", "a"), newEcho(t, "127.0.0.1:0", "b")
	lb, addr := start(t, filepath.Join(t.TempDir(), "servers.json"), a.addr())
	if err := lb.Set([]string{a.addr(), b.addr()}); err != nil {
		t.Fatal(err)
	}
	name, conn := who(t, addr)
	map[string]*echo{"a": a, "b": b}[name].hangUp()
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Fatal("the connection goes on")
	}
	for range 5 {
		if got, _ := who(t, addr); got == name {
			t.Errorf("sent to %s again", got)
		}
	}
}

// deaf is a server whose machine takes no connections and does not say so: its queue is full.
func deaf(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}),
		unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port)
	for { // until one is not taken any more
		c, err := net.DialTimeout("tcp", addr, 300*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { _ = c.Close() })
	}
}

func TestAServerThatDoesNotAnswer(t *testing.T) {
	good := newEcho(t, "127.0.0.1:0", "g")
	lb, addr := start(t, filepath.Join(t.TempDir(), "f"), good.addr())
	if err := lb.Set([]string{deaf(t), deaf(t)}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		begun := time.Now()
		if got, _ := who(t, addr); got != "g" {
			t.Fatal("the server that the user has named is not tried")
		}
		if took := time.Since(begun); took > 10*staggerDelay {
			t.Errorf("a connection took %s", took)
		}
	}
}

func TestServerComesBack(t *testing.T) {
	a := newEcho(t, "127.0.0.1:0", "a")
	at := a.addr()
	_, addr := start(t, filepath.Join(t.TempDir(), "f"), at)
	a.kill()
	if got, _ := who(t, addr); got != "" {
		t.Fatalf("got %q", got)
	}
	newEcho(t, at, "b")
	if got, _ := who(t, addr); got != "b" {
		t.Fatalf("got %q", got)
	}
}

func TestHalfClosedConnections(t *testing.T) {
	a := newEcho(t, "127.0.0.1:0", "a")
	_, addr := start(t, filepath.Join(t.TempDir(), "f"), a.addr())
	_, c := who(t, addr)
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestListAndNotice(t *testing.T) {
	b, err := New(Config{File: filepath.Join(t.TempDir(), "f"), Given: "host:6443", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	list, changed := b.Servers()
	if !slices.Equal(list, []string{"host:6443"}) {
		t.Errorf("%q", list)
	}
	if err := b.Set([]string{"b:1", "a:1", "b:1"}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("no notice")
	}
	list, changed = b.Servers()
	if !slices.Equal(list, []string{"a:1", "b:1"}) {
		t.Errorf("%q", list)
	}
	for _, same := range [][]string{{"b:1", "a:1"}, nil} {
		if err := b.Set(same); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-changed:
		t.Error("notice of nothing")
	default:
	}
	if err := b.Set([]string{"nonsense"}); err == nil {
		t.Error("a bad list is taken")
	}
	if s := fmt.Sprint(b.Section(t.Context())); !strings.Contains(s, "host:6443") {
		t.Error(s)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`["10.0.0.1:6443"]`))
	f.Add([]byte(`[`))
	f.Fuzz(func(_ *testing.T, raw []byte) { _, _ = parse(raw) })
}
