package containerd_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/umiak-io/umiak/agent/runtime/containerd"
	"github.com/umiak-io/umiak/agent/runtime/images"
	"github.com/umiak-io/umiak/agent/runtime/programs"
	"github.com/umiak-io/umiak/agent/runtime/registries"
	"github.com/umiak-io/umiak/internal/layout"
)

const childEnv = "UMIAK_TEST_CONTAINERD"

// TestMain lets the test binary be the process that runs containerd, so that it can be killed.
func TestMain(m *testing.M) {
	if conf := os.Getenv(childEnv); conf != "" {
		if err := child(conf); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// childConfig is what a child is told.
type childConfig struct {
	Dirs       layout.Dirs
	Programs   programs.Programs
	Registries string
	Registry   bool // run a registry as well
	Runtime    string
}

func child(conf string) error {
	var cfg childConfig
	if err := json.Unmarshal([]byte(conf), &cfg); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if cfg.Registry {
		if err := serveRegistry(cfg); err != nil {
			return err
		}
	}
	reg := registries.New(registries.Config{File: cfg.Registries, Log: log})
	go func() { _ = reg.Run(ctx, func() {}) }()
	c, err := containerd.New(containerd.Config{Dirs: cfg.Dirs, Programs: cfg.Programs, Snapshotter: "overlayfs",
		Registry: reg, Runtime: cfg.Runtime, NonrootDevices: true, Log: log})
	if err != nil {
		return err
	}
	imp := images.New(images.Config{Dir: cfg.Dirs.Images(), Socket: cfg.Dirs.ContainerdSocket(),
		State: filepath.Join(cfg.Dirs.ContainerdRoot(), "images.json"), Log: log})
	err = c.Run(ctx, func() {
		fmt.Println("ready")
		go func() {
			if err := imp.Run(ctx, func() {}); err != nil {
				log.Error("importer ended", "error", err)
			}
		}()
	})
	if err == nil {
		fmt.Println("goroutines", runtime.NumGoroutine())
	}
	return err
}

// node is one containerd in a network and a mount namespace of its own.
type node struct {
	t      *testing.T
	cfg    childConfig
	holder *exec.Cmd
	proc   *exec.Cmd
	out    *bufio.Scanner
	log    *os.File
	cgroup string
}

// builtPrograms returns the programs that scripts/build has made, and skips the test without them.
func builtPrograms(t *testing.T) programs.Programs {
	t.Helper()
	dir, err := filepath.Abs("../../../.cache/build/" + runtime.GOARCH + "/bundle")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "runc")); err != nil || os.Getuid() != 0 {
		t.Skip("needs root and the programs of: scripts/build --only bundle")
	}
	return programs.Programs{Runc: dir + "/runc", Shim: dir + "/containerd-shim-runc-v2", CNIDir: dir + "/cni",
		Pause: dir + "/pause"}
}

func newNode(t *testing.T) *node {
	t.Helper()
	p := builtPrograms(t)
	run, err := os.MkdirTemp("/run", "umiak-t")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.MkdirTemp("/var/tmp", "umiak-test-") // overlayfs does not go on overlayfs, nor on every tmpfs
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, cgroup: "umiak-test-" + filepath.Base(run)}
	n.cfg = childConfig{Dirs: layout.Dirs{Data: data, Run: run}, Programs: p,
		Registries: filepath.Join(data, "registries.yaml")}
	n.holder = exec.Command("sleep", "infinity")
	n.holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		Pdeathsig: syscall.SIGKILL}
	if err := n.holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.cleanup)
	n.inside("mount", "--make-rprivate", "/")
	n.inside("ip", "link", "set", "lo", "up")
	return n
}

// inside runs a program in the node's namespaces.
func (n *node) inside(args ...string) string {
	n.t.Helper()
	out, err := n.enter(args...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%v: %v: %s", args, err, out)
	}
	return string(out)
}

func (n *node) enter(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", fmt.Sprint(n.holder.Process.Pid), "-m", "-n", "--"},
		args...)...)
}

// start runs containerd until it says ready, and returns how long that took.
func (n *node) start() time.Duration {
	n.t.Helper()
	conf, err := json.Marshal(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	if n.log == nil {
		if n.log, err = os.Create(filepath.Join(n.cfg.Dirs.Data, "log")); err != nil {
			n.t.Fatal(err)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	n.proc = n.enter(exe)
	n.proc.Env = append(os.Environ(), childEnv+"="+string(conf))
	n.proc.Stderr = n.log
	out, err := n.proc.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	begun := time.Now()
	if err := n.proc.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.out = bufio.NewScanner(out)
	if !n.out.Scan() || n.out.Text() != "ready" {
		_ = n.proc.Wait()
		text, _ := os.ReadFile(n.log.Name())
		n.t.Fatalf("containerd did not start (%q): %s", n.out.Text(), text)
	}
	return time.Since(begun)
}

// stop ends it with a signal and returns what it printed and how long it took.
func (n *node) stop(sig os.Signal) (string, time.Duration) {
	n.t.Helper()
	begun := time.Now()
	if err := n.proc.Process.Signal(sig); err != nil {
		n.t.Fatal(err)
	}
	var last string
	for n.out.Scan() {
		last = n.out.Text()
	}
	_ = n.proc.Wait()
	n.proc = nil
	return last, time.Since(begun)
}

func (n *node) cleanup() {
	if n.t.Failed() && n.log != nil {
		text, _ := os.ReadFile(n.log.Name())
		n.t.Logf("log: %s", text)
	}
	if n.proc != nil {
		_ = n.proc.Process.Kill()
		_ = n.proc.Wait()
	}
	// Shims and containers are found by the node's own directory in their command lines and cgroup.
	for _, pid := range n.processes() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	_ = n.holder.Process.Kill()
	_ = n.holder.Wait()
	err := errors.Join(os.RemoveAll(n.cfg.Dirs.Run), os.RemoveAll(n.cfg.Dirs.Data))
	if dir := containerd.ShimSockets(n.cfg.Dirs); !strings.HasPrefix(dir, n.cfg.Dirs.Run) {
		err = errors.Join(err, os.RemoveAll(filepath.Dir(dir)))
	}
	if err != nil {
		n.t.Error(err)
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + n.cgroup)
	own, _ := filepath.Glob("/sys/fs/cgroup/" + n.cgroup)
	for _, g := range append(groups, own...) {
		removeCgroup(g)
	}
}

// processes are the shims of this node, their containers, and whatever else is in its namespaces.
func (n *node) processes() []int {
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", n.holder.Process.Pid))
	if err != nil {
		return nil
	}
	var out []int
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range all {
		var pid int
		_, _ = fmt.Sscanf(filepath.Base(p), "%d", &pid)
		if pid == n.holder.Process.Pid {
			continue
		}
		mnt, _ := os.Readlink(p + "/ns/mnt")
		groups, _ := os.ReadFile(p + "/cgroup")
		if mnt == ns || bytes.Contains(groups, []byte("/"+n.cgroup)) {
			out = append(out, pid)
		}
	}
	return out
}

func removeCgroup(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeCgroup(filepath.Join(dir, e.Name()))
		}
	}
	for range 50 {
		if err := syscall.Rmdir(dir); err == nil || errors.Is(err, syscall.ENOENT) {
			return
		}
		time.Sleep(20 * time.Millisecond) // the kernel takes a moment to let go of killed processes
	}
}

// client speaks CRI.
type client struct {
	cri.RuntimeServiceClient
	cri.ImageServiceClient
}

func (n *node) client() client {
	n.t.Helper()
	conn, err := grpc.NewClient("unix://"+n.cfg.Dirs.ContainerdSocket(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", strings.TrimPrefix(addr, "unix://"))
		}))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = conn.Close() })
	return client{cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)}
}

// busybox is an image with Debian's static busybox in it.
func busybox(t *testing.T) v1.Image {
	t.Helper()
	bin, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs Debian's busybox-static")
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "bin/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755, Size: int64(len(bin))},
		{Typeflag: tar.TypeSymlink, Name: "bin/sh", Linkname: "busybox"},
		{Typeflag: tar.TypeSymlink, Name: "bin/sleep", Linkname: "busybox"},
		{Typeflag: tar.TypeSymlink, Name: "bin/ip", Linkname: "busybox"},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write(bin); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser,
		error) {
		return io.NopCloser(bytes.NewReader(b.Bytes())), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH,
		RootFS: must(img.ConfigFile()).RootFS, Config: v1.Config{Cmd: []string{"/bin/sleep", "1000000"}}})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// eventually waits for a condition.
