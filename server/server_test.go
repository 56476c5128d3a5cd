package server_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/server"
)

const nodeIP = "192.0.2.10"

// TestMain runs the tests in a network namespace of their own: the binary starts itself again in one.
func TestMain(m *testing.M) {
	if os.Getenv("UMIAK_TEST_NETNS") == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), "UMIAK_TEST_NETNS=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "in a network namespace:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err == nil {
		addr, _ := netlink.ParseAddr(nodeIP + "/32")
		err = netlink.AddrAdd(lo, addr)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "set up loopback:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

type running struct {
	*server.Server
	cfg    server.Config
	group  *lifecycle.Group
	cancel context.CancelFunc
	done   chan error
}

func config(t testing.TB, dir string) server.Config {
	run, err := os.MkdirTemp("/tmp", "umiak-cp-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	return server.Config{
		DataDir: dir, RunDir: run, HTTPSPort: 6443, NodeIP: []string{nodeIP},
		ClusterCIDR: []string{"10.42.0.0/16"}, ServiceCIDR: []string{"10.43.0.0/16"}, NodePorts: "30000-32767",
		ClusterDomain: "cluster.local", FlannelBackend: "vxlan", WriteKubeconfigMode: "0600",
	}
}

func start(t testing.TB, cfg server.Config) *running {
	t.Helper()
	level := os.Getenv("UMIAK_TEST_LOG")
	if level == "" {
		level = "error"
	}
	log, err := logging.Setup(logging.Config{Level: level, Format: "text"}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	s, err := server.New(t.Context(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	g, err := lifecycle.New(slog.Default(), s.Parts()...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Server: s, cfg: cfg, group: g, cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- g.Run(ctx) }()
	return r
}

func (r *running) stop(t testing.TB) time.Duration {
	t.Helper()
	begun := time.Now()
	r.cancel()
	select {
	case err := <-r.done:
		if err != nil {
			t.Errorf("stopped with: %v", err)
		}
	case <-time.After(30 * time.Second):
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		t.Fatal("does not stop")
	}
	r.Close()
	return time.Since(begun)
}

func (r *running) client(t testing.TB) *kubernetes.Clientset {
	t.Helper()
	c, err := clientcmd.BuildConfigFromFlags("", r.AdminKubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	k, err := kubernetes.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestControlPlane(t *testing.T) {
	dir := t.TempDir()
	cfg := config(t, filepath.Join(dir, "data"))
	if f := os.Getenv("UMIAK_TEST_STARTPROF"); f != "" {
		runtime.SetCPUProfileRate(500)
		prof, _ := os.Create(f)
		_ = pprof.StartCPUProfile(prof)
	}
	begun := time.Now()
	r := start(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := r.Joiner().Join(ctx, agent.Node{Name: "n1", IPs: []string{nodeIP}}); err != nil {
		t.Fatal(err, r.group.Status())
	}
	t.Logf("joined after %v", time.Since(begun))
	k := r.client(t)
	for {
		if _, err := k.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{}); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	pprof.StopCPUProfile()
	t.Logf("default ServiceAccount after %v", time.Since(begun))
	st, err := r.Status(ctx)
	t.Logf("%+v %v", st, err)
	if secs := os.Getenv("UMIAK_TEST_IDLE"); secs != "" {
		idle(t, secs)
	}
	t.Logf("stopped after %v", r.stop(t))
	runtime.GC()
	time.Sleep(time.Second)
	t.Logf("%d goroutines left", runtime.NumGoroutine())
}

// idle measures the process for a while.
func idle(t *testing.T, d string) {
	span, err := time.ParseDuration(d)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Second)
	cpu := func() time.Duration {
		var ru syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
		return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	}
	prof, _ := os.Create("/tmp/umiak-cp-cpu.prof")
	_ = pprof.StartCPUProfile(prof)
	before := cpu()
	time.Sleep(span)
	used := cpu() - before
	pprof.StopCPUProfile()
	_ = prof.Close()
	raw, _ := os.ReadFile("/proc/self/smaps_rollup")
	for _, l := range strings.Split(string(raw), "\n") {
		if strings.HasPrefix(l, "Rss") || strings.HasPrefix(l, "Pss:") || strings.HasPrefix(l, "Anonymous") || strings.HasPrefix(l, "Private_D") {
			t.Log(l)
		}
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.Logf("heap in use %d MiB, released %d, stacks %d, sys %d, GCs %d, next %d", m.HeapInuse>>20, m.HeapReleased>>20, m.StackInuse>>20, m.Sys>>20, m.NumGC, m.NextGC>>20)
	t.Logf("cpu %.2f s/min, %d goroutines", used.Seconds()/span.Minutes(), runtime.NumGoroutine())
	heap, _ := os.Create("/tmp/umiak-cp-heap.prof")
	_ = pprof.WriteHeapProfile(heap)
	_ = heap.Close()
	gor, _ := os.Create("/tmp/umiak-cp-goroutines.txt")
	_ = pprof.Lookup("goroutine").WriteTo(gor, 1)
	_ = gor.Close()
}

func insecure(url string) (int, string) {
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 5 * time.Second}
	defer c.CloseIdleConnections()
	resp, err := c.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

var _ = insecure
