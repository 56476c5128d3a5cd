package server_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/agent/host/nodeip"
	settings "github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/internal/testing/testns"
	"github.com/umiak-io/umiak/internal/wellknown"
	"github.com/umiak-io/umiak/server"
	"github.com/umiak-io/umiak/server/controlplane"
	"github.com/umiak-io/umiak/server/pki"
)

const nodeIP = "192.0.2.10"

// TestMain runs the tests in a network namespace of their own, in which the binary starts itself again.
// Told to, it is the server instead: what is tested is a whole process, its end included.
func TestMain(m *testing.M) {
	if dir := os.Getenv("UMIAK_TEST_SERVE"); dir != "" {
		if err := serve(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(testns.Run(func() int {
		if err := loopback(); err != nil {
			fmt.Fprintln(os.Stderr, "set up loopback (needs root):", err)
			return 1
		}
		return m.Run()
	}))
}

func loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(nodeIP + "/32")
	return errors.Join(err, netlink.LinkSetUp(lo), netlink.AddrAdd(lo, addr))
}

func config(dir string) server.Config {
	var c server.Config
	settings.Defaults(&c)
	c.DataDir, c.RunDir = filepath.Join(dir, "data"), filepath.Join(dir, "run")
	c.NodeIP = nodeip.At(netip.MustParseAddr(nodeIP))
	c.AuditLog = filepath.Join(dir, "data", "audit", "audit.log")
	return c
}

// serve runs a server until SIGTERM; "joined" on its output says that a node has joined.
func serve(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	level := os.Getenv("UMIAK_TEST_LOG")
	if level == "" {
		level = "error"
	}
	log, _, err := logging.Setup(logging.Config{Level: level, Format: "text"}, os.Stderr)
	if err != nil {
		return err
	}
	var lifetimes pki.Config
	if life := os.Getenv("UMIAK_TEST_LEAF"); life != "" {
		d, err := time.ParseDuration(life)
		if err != nil {
			return err
		}
		lifetimes.LeafLifetime = d
	}
	cfg, ip := config(dir), nodeIP
	if port := os.Getenv("UMIAK_TEST_PORT"); port != "" {
		if err := cfg.HTTPSPort.UnmarshalText([]byte(port)); err != nil {
			return err
		}
	}
	if args := os.Getenv("UMIAK_TEST_APISERVER_ARGS"); args != "" {
		cfg.APIServerArg = strings.Split(args, "\n")
	}
	if os.Getenv("UMIAK_TEST_METRICS") != "" {
		cfg.ControllerArg, cfg.SchedulerArg = []string{"bind-address=127.0.0.1"}, []string{"bind-address=0.0.0.0"}
	}
	if os.Getenv("UMIAK_TEST_HEADLESS") != "" {
		cfg.DisableAgent, ip = true, farIP
	}
	release, err := instance.Acquire(cfg.Dirs())
	if err != nil {
		return err
	}
	defer release()
	addrs, err := server.Addresses(ctx, cfg, log)
	if err != nil {
		return err
	}
	s, err := server.Assemble(cfg, server.Start{Addresses: addrs}, lifetimes, log)
	if err != nil {
		return err
	}
	parts := append(s.Parts(server.NodeHooks{}), lifecycle.Part{Name: "join",
		Run: func(ctx context.Context, ready func()) error {
			if _, err := s.Joiner().Join(ctx, agent.Node{Name: "n1", IPs: []string{ip}}); err != nil {
				return err
			}
			fmt.Println("joined")
			var st []status.Section
			for _, source := range s.Sources() {
				st = append(st, source(ctx))
			}
			if err := json.NewEncoder(os.Stdout).Encode(st); err != nil {
				return err
			}
			ready()
			<-ctx.Done()
			return nil
		}})
	g, err := lifecycle.New(slog.Default(), parts...)
	if err != nil {
		return err
	}
	profileOnSignal(dir)
	return g.Run(ctx)
}

// process is a server in a process of its own.
type process struct {
	dir    string
	cmd    *exec.Cmd
	out    *bufio.Reader
	joined time.Duration
	ended  bool
}

// start runs a server, with more in its environment for serve.
func start(t testing.TB, dir string, env ...string) *process {
	t.Helper()
	p := &process{dir: dir, cmd: exec.Command("/proc/self/exe")}
	p.cmd.Env = append(append(os.Environ(), "UMIAK_TEST_SERVE="+dir), env...)
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	begun := time.Now()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !p.ended {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
	})
	if line, err := p.out.ReadString('\n'); err != nil || line != "joined\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	p.joined = time.Since(begun)
	return p
}

// stop ends the process as an init system does, and returns how long that took.
func (p *process) stop(t testing.TB) time.Duration {
	t.Helper()
	begun := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := p.cmd.Wait()
	p.ended = true
	if err != nil {
		t.Errorf("stopped with: %v", err)
	}
	return time.Since(begun)
}

func (p *process) client(t testing.TB, kubeconfig string) *kubernetes.Clientset {
	t.Helper()
	c, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	c.QPS = -1
	k, err := kubernetes.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (p *process) admin(t testing.TB) *kubernetes.Clientset {
	return p.client(t, config(p.dir).Dirs().AdminKubeconfig())
}

// eventually repeats check until it is nil.
func eventually(t testing.TB, what string, check func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestControlPlane(t *testing.T) {
	dir := t.TempDir()
	begun := time.Now()
	p := start(t, dir)
	cpu, _ := usage(t, filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid)))
	t.Logf("empty directory to joined: %v, %.2f CPU seconds", p.joined, cpu)
	var st []status.Section
	if line, err := p.out.ReadBytes('\n'); err != nil || json.Unmarshal(line, &st) != nil {
		t.Fatalf("status: %s, %v", line, err)
	}
	for name, rows := range map[string]int{"Components": 4, "Datastore": 1, "Certificates": 4 + 7 + 3} {
		if !slices.ContainsFunc(st, func(s status.Section) bool { return s.Name == name && len(s.Rows) >= rows }) {
			t.Errorf("status has no %d rows of %s: %+v", rows, name, st)
		}
	}
	k := p.admin(t)
	eventually(t, "default ServiceAccount", func(ctx context.Context) error {
		_, err := k.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	t.Logf("to the default ServiceAccount: %v", time.Since(begun))

	dirs := config(dir).Dirs()
	secret := "sesame-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	t.Run("strangers get health and nothing else, on every port", func(t *testing.T) { strangers(t) })
	t.Run("every component is healthy", func(t *testing.T) {
		eventually(t, "health", func(ctx context.Context) error {
			return k.RESTClient().Get().AbsPath(controlplane.HealthPath).Do(ctx).Error()
		})
	})
	t.Run("no series twice", func(t *testing.T) { series(t, k) })
	t.Run("a node may touch what is its own", func(t *testing.T) { node(t, p.client(t, dirs.KubeletKubeconfig())) })
	t.Run("an agent may read what it needs", func(t *testing.T) {
		a := p.client(t, dirs.AgentKubeconfig())
		if _, err := a.CoreV1().Services("").List(t.Context(), metav1.ListOptions{}); err != nil {
			t.Error(err)
		}
		if _, err := a.CoreV1().ConfigMaps("kube-system").List(t.Context(),
			metav1.ListOptions{FieldSelector: "metadata.name=coredns"}); err != nil {
			t.Error(err)
		}
		if _, err := a.CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("lists Secrets: %v", err)
		}
		if _, err := a.CoreV1().ConfigMaps("kube-system").List(t.Context(),
			metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("lists ConfigMaps: %v", err)
		}
	})
	t.Run("pods are checked", func(t *testing.T) {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "strict",
			Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}}
		if _, err := k.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "ServiceAccount", func(ctx context.Context) error {
			_, err := k.CoreV1().ServiceAccounts("strict").Get(ctx, "default", metav1.GetOptions{})
			return err
		})
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"},
			Spec: corev1.PodSpec{HostNetwork: true, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
		if _, err := k.CoreV1().Pods("strict").Create(t.Context(), pod,
			metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("got %v", err)
		}
	})
	for _, data := range []any{
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"k": secret}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Data: map[string]string{"k": secret}},
	} {
		var err error
		switch o := data.(type) {
		case *corev1.Secret:
			_, err = k.CoreV1().Secrets("default").Create(t.Context(), o, metav1.CreateOptions{})
		case *corev1.ConfigMap:
			_, err = k.CoreV1().ConfigMaps("default").Create(t.Context(), o, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Run("the administrator's rights come by a binding", func(t *testing.T) {
		who, err := k.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{},
			metav1.CreateOptions{})
		if err != nil || !slices.Contains(who.Status.UserInfo.Groups, wellknown.AdminsGroup) ||
			slices.Contains(who.Status.UserInfo.Groups, "system:masters") {
			t.Errorf("%+v, %v", who, err)
		}
	})
	t.Run("who may patch nodes may not ask for an upgrade",
		func(t *testing.T) { asksForUpgrades(t, k, dirs.AdminKubeconfig()) })
	t.Run("continue tokens end with what is compacted",
		func(t *testing.T) { tokensEnd(t, k, "unix://"+dirs.DatastoreSocket()) })
	t.Run("no file tells the Secret while it runs", func(t *testing.T) { noFileHas(t, dir, secret) })
	// An administrator may write a range that the cluster would not give: the next start must not fail on it.
	foreign := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "foreign"},
		Spec: corev1.NodeSpec{PodCIDR: "203.0.113.0/24", PodCIDRs: []string{"203.0.113.0/24"}}}
	if _, err := k.CoreV1().Nodes().Create(t.Context(), foreign, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if took := p.stop(t); took > 5*time.Second {
		t.Errorf("stop took %v", took)
	} else {
		t.Logf("stop: %v", took)
	}
	t.Run("no file tells the Secret", func(t *testing.T) { noFileHas(t, dir, secret) })
	t.Run("keys are private", func(t *testing.T) { private(t, dir) })

	p = start(t, dir, "UMIAK_TEST_METRICS=1")
	t.Logf("restart to joined: %v", p.joined)
	s, err := p.admin(t).CoreV1().Secrets("default").Get(t.Context(), "s", metav1.GetOptions{})
	if err != nil || string(s.Data["k"]) != secret {
		t.Errorf("the Secret after a restart: %v", err)
	}
	t.Run("a foreign range of one node keeps no other from getting one",
		func(t *testing.T) { foreignRange(t, p.admin(t)) })
	// The controllers have started twice in this process, so their port was opened twice.
	t.Run("ports for metrics", func(t *testing.T) { metricsPorts(t, config(dir).Dirs().AdminKubeconfig()) })
	p.stop(t)
}

// metricsPorts: with bind-address, the controller manager and the scheduler serve their metrics to those whom the API
// server lets read them, and health to all.
func metricsPorts(t *testing.T, kubeconfig string) {
	c, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := rest.HTTPClientFor(c)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := rest.HTTPClientFor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{CAData: c.CAData}})
	if err != nil {
		t.Fatal(err)
	}
	for port, metric := range map[int]string{10257: "node_collector_zone_size", 10259: "scheduler_pending_pods"} {
		for _, ask := range []struct {
			client     *http.Client
			path, want string
			status     int
		}{{admin, "/metrics", metric, http.StatusOK}, {stranger, "/metrics", "", http.StatusForbidden},
			{stranger, "/healthz", "ok", http.StatusOK}} {
			eventually(t, fmt.Sprint(port, ask.path), func(ctx context.Context) error {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet,
					fmt.Sprintf("https://127.0.0.1:%d%s", port, ask.path), nil)
				if err != nil {
					return err
				}
				resp, err := ask.client.Do(req)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if resp.StatusCode != ask.status || !strings.Contains(string(body), ask.want) {
					return errors.Join(err, fmt.Errorf("%s, %.200s", resp.Status, body))
				}
				return nil
			})
		}
	}
}

// foreignRange: the controllers run while there is a Node with a range that the cluster would not give, an Event
// names it, and when it is gone others get ranges.
func foreignRange(t *testing.T, k *kubernetes.Clientset) {
	ctx := t.Context()
	if _, err := k.CoreV1().Namespaces().Create(ctx,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "meanwhile"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "controllers run, and an Event of the foreign Node", func(ctx context.Context) error {
		if _, err := k.CoreV1().ServiceAccounts("meanwhile").Get(ctx, "default", metav1.GetOptions{}); err != nil {
			return err
		}
		list, err := k.CoreV1().Events("").List(ctx,
			metav1.ListOptions{FieldSelector: "reason=ForeignPodRange,involvedObject.name=foreign"})
		if err == nil && len(list.Items) == 0 {
			return errors.New("no Event")
		}
		return err
	})
	if _, err := k.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "later"}},
		metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := k.CoreV1().Nodes().Delete(ctx, "foreign", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a range for a new Node", func(ctx context.Context) error {
		n, err := k.CoreV1().Nodes().Get(ctx, "later", metav1.GetOptions{})
		if err == nil && n.Spec.PodCIDR == "" {
			return errors.New("none yet")
		}
		return err
	})
}

// strangers asks every listening port without credentials.
func strangers(t *testing.T) {
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
		Timeout: 10 * time.Second}
	defer c.CloseIdleConnections()
	ports := listening(t)
	if len(ports) != 1 || ports[0] != 6443 {
		t.Errorf("listens on %v", ports)
	}
	for _, port := range ports {
		for _, path := range []string{"/", "/api", "/apis", "/version", "/metrics", "/openapi/v2", "/configz",
			"/healthz/etcd", "/readyz?verbose", "/livez/ping", controlplane.HealthPath,
			"/api/v1/namespaces/default/secrets", "/livez", "/readyz", "/healthz"} {
			resp, err := c.Get(fmt.Sprintf("https://127.0.0.1:%d%s", port, path))
			if err != nil {
				t.Errorf("%d%s: %v", port, path, err)
				continue
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			health := path == "/livez" || path == "/healthz" || strings.HasPrefix(path, "/readyz")
			if ok := resp.StatusCode == http.StatusOK; ok != health || !ok &&
				resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusForbidden {
				t.Errorf("%d%s: %s: %.100s", port, path, resp.Status, body)
			}
		}
		for _, v := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
			conn, err := tls.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
				&tls.Config{InsecureSkipVerify: true, MinVersion: v, MaxVersion: v})
			if err == nil {
				_ = conn.Close()
				t.Errorf("%d speaks TLS version %x", port, v)
			}
		}
	}
}

// listening reads this network namespace's listening TCP ports.
func listening(t *testing.T) (ports []int) {
	seen := map[int]bool{}
	for _, f := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range strings.Split(string(raw), "\n")[1:] {
			w := strings.Fields(l)
			if len(w) < 4 || w[3] != "0A" {
				continue
			}
			_, hex, _ := strings.Cut(w[1], ":")
			n, err := strconv.ParseInt(hex, 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			if !seen[int(n)] {
				seen[int(n)] = true
				ports = append(ports, int(n))
			}
		}
	}
	return ports
}

// series checks that /metrics has the metrics of all components, and none twice.
func series(t *testing.T, k *kubernetes.Clientset) {
	raw, err := k.RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	sc := bufio.NewScanner(bytes.NewReader(raw))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		l := sc.Text()
		if l == "" || strings.HasPrefix(l, "#") && !strings.HasPrefix(l, "# TYPE") {
			continue
		}
		name := l[:strings.LastIndexByte(l, ' ')]
		if seen[name] {
			t.Errorf("twice: %s", name)
		}
		seen[name] = true
	}
	for _, want := range []string{"# TYPE apiserver_request_total", "# TYPE scheduler_pending_pods",
		"# TYPE running_managed_controllers", "# TYPE workqueue_depth"} {
		if !seen[want] {
			t.Errorf("missing: %s", want)
		}
	}
	t.Logf("%d series, %d bytes", len(seen), len(raw))
}

// node checks NodeRestriction and the Node authorizer with n1's credentials.
func node(t *testing.T, k *kubernetes.Clientset) {
	for _, cidr := range []string{"203.0.113.0/24", "10.42.0.0/24", "10.42.0.7/32"} {
		ranged := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"},
			Spec: corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}}}
		if _, err := k.CoreV1().Nodes().Create(t.Context(), ranged,
			metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("gives itself the range %s: %v", cidr, err)
		}
	}
	if _, err := k.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}},
		metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "podCIDR", func(ctx context.Context) error {
		n, err := k.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
		if err == nil && n.Spec.PodCIDR == "" {
			return errors.New("none yet")
		}
		return err
	})
	if _, err := k.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}},
		metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("creates another node: %v", err)
	}
	large := corev1.NodeStatus{Images: []corev1.ContainerImage{{}}}
	for i := range 20_000 {
		large.Images[0].Names = append(large.Images[0].Names, fmt.Sprintf("r.test/%d:1", i))
	}
	if body, err := json.Marshal(map[string]any{"status": map[string]any{"images": large.Images}}); err != nil {
		t.Error(err)
	} else if _, err := k.CoreV1().Nodes().Patch(t.Context(), "n1", types.MergePatchType, body, metav1.PatchOptions{}, "status"); !apierrors.IsForbidden(err) {
		t.Errorf("reports 20,000 images: %v", err)
	}
	label := []byte(`{"metadata":{"labels":{"node-restriction.kubernetes.io/x":"y"}}}`)
	if _, err := k.CoreV1().Nodes().Patch(t.Context(), "n1", types.MergePatchType, label,
		metav1.PatchOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("sets a restricted label: %v", err)
	}
	if _, err := k.CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("lists Secrets: %v", err)
	}
}

func noFileHas(t *testing.T, dir, text string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // what is gone tells nothing
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // as above
		}
		n++
		if bytes.Contains(raw, []byte(text)) {
			t.Errorf("%s has it", path)
		}
		return nil
	})
	if err != nil || n < 20 {
		t.Errorf("looked at %d files: %v", n, err)
	}
}

func private(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		secret := bytes.Contains(raw, []byte("PRIVATE KEY")) || bytes.Contains(raw, []byte("client-key")) ||
			strings.Contains(path, "/db/") ||
			bytes.Contains(raw, []byte("secretbox")) || strings.Contains(path, "audit.log")
		if secret && fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, fi.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestCertificatesAreRenewedUnderWay lets certificates live 12 s: after that nothing works any more that
// did not follow the renewals.
func TestCertificatesAreRenewedUnderWay(t *testing.T) {
	const life = 12 * time.Second
	t.Setenv("UMIAK_TEST_LEAF", life.String())
	dir := t.TempDir()
	p := start(t, dir)
	served := func() (time.Time, error) {
		c, err := tls.Dial("tcp", "127.0.0.1:6443", &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return time.Time{}, err
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].NotAfter, nil
	}
	first, err := served()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first certificates' end", func(context.Context) error {
		if time.Now().Before(first.Add(time.Second)) {
			return errors.New("they are still good")
		}
		return nil
	})
	eventually(t, "a serving certificate that is good", func(context.Context) error {
		end, err := served()
		if err == nil && time.Now().After(end) {
			return fmt.Errorf("ended %v", end)
		}
		return err
	})
	dirs := config(dir).Dirs()
	for _, kubeconfig := range []string{dirs.KubeletKubeconfig(), dirs.AgentKubeconfig(),
		filepath.Join(dirs.ServerKubeconfigs(), "scheduler.kubeconfig")} {
		if _, err := p.client(t, kubeconfig).CoreV1().Services("").List(t.Context(), metav1.ListOptions{}); err != nil {
			t.Errorf("%s: %v", kubeconfig, err)
		}
	}
	// The controllers act still, so their clients have followed.
	k := p.admin(t)
	if _, err := k.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "later"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ServiceAccount", func(ctx context.Context) error {
		_, err := k.CoreV1().ServiceAccounts("later").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	p.stop(t)
}

func TestWrongArgumentsAreOneClearError(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.APIServerArg = []string{"no-such-flag=1", "event-ttl=soon"}
	cfg.SchedulerArg = []string{"neither=1"}
	log := slog.New(slog.DiscardHandler)
	addrs, err := server.Addresses(t.Context(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	_, err = server.New(cfg, server.Start{Addresses: addrs}, log)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{`kube-apiserver-arg: there is no flag "no-such-flag"`, "event-ttl",
		`kube-scheduler-arg: there is no flag "neither"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}
