package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/umiak-io/umiak/e2e/images"
	"github.com/umiak-io/umiak/e2e/machine"
	"github.com/umiak-io/umiak/internal/layout"
)

// Dirs are where umiak keeps its things on a machine: its own defaults.
func Dirs() layout.Dirs { return layout.Dirs{Data: "/var/lib/umiak", Run: "/run/umiak"} }

// Options say how a cluster is made. The zero value is what a user gets with no settings at all.
type Options struct {
	// Name is the node's host name; default m1.
	Name string
	// LAN is the network of its machine; default one of its own.
	LAN *machine.LAN
	// Run is the command that Start runs; default umiak server.
	Run []string
	// Settings become /etc/umiak/config.yaml.
	Settings map[string]string
	// Images are put into the images folder; nil means both of the tests' images.
	Images []string
	// Env are more variables for umiak.
	Env []string
	// Dist is the folder of the programs; default is what the function Dist returns.
	Dist string
	// Evidence is the folder for umiak's log and what Collect writes.
	Evidence string
	// Persist lets the machine outlive this process.
	Persist bool
	// System is what the machine boots; default a process 1 that does nothing.
	System machine.System
	// Service means that an init system looks after umiak: Start, Stop and Kill are not for it. With a System it is so.
	Service bool
}

// Cluster is one machine that runs umiak.
type Cluster struct {
	M        *machine.Machine
	Evidence string
	Kube     kubernetes.Interface // nil until Connect
	Dynamic  dynamic.Interface
	REST     *rest.Config
	DataDir  string // where the data are, as this process sees it; "" for that of Dirs

	env     []string
	argv    []string
	service bool
	mu      sync.Mutex
	run     *process
	fwd     *forwarder
}

// process is one run of umiak.
type process struct {
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{}
	err  error // set before done is closed
}

// Dist is the folder with the binaries under test: UMIAK_DIST or dist/ of the checkout.
func Dist() (string, error) {
	dir := os.Getenv("UMIAK_DIST")
	if dir == "" {
		root, err := Checkout()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(root, "dist")
	}
	if _, err := os.Stat(filepath.Join(dir, "umiak")); err != nil {
		return "", fmt.Errorf("no binary to test, run scripts/build: %w", err)
	}
	return dir, nil
}

// Checkout is the root of the repository: the nearest folder above with a go.mod.
func Checkout() (string, error) {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, e := os.Stat(filepath.Join(dir, "go.mod")); e == nil {
			return dir, nil
		}
		dir = filepath.Dir(dir)
	}
	return "", errors.New("not inside the repository")
}

// testImages are built once a process.
var testImages = sync.OnceValues(func() (images.Set, error) { return images.Build(context.Background()) })

// New makes the machine and its settings, and puts the images in place; Start starts umiak on it.
func New(o Options) (*Cluster, error) {
	if o.Dist == "" {
		var err error
		if o.Dist, err = Dist(); err != nil {
			return nil, err
		}
	}
	if o.Images == nil {
		o.Images = []string{images.App1, images.App2}
	}
	if o.Evidence == "" {
		root, err := Checkout()
		if err != nil {
			return nil, err
		}
		o.Evidence = filepath.Join(root, ".cache", "e2e",
			fmt.Sprintf("%s-%s-%d", time.Now().Format("150405"), o.Name, os.Getpid()))
	}
	if err := os.MkdirAll(o.Evidence, 0o755); err != nil {
		return nil, err
	}
	m, err := machine.New(machine.Options{Name: o.Name, LAN: o.LAN, Bin: o.Dist, Persist: o.Persist, System: o.System})
	if err != nil {
		return nil, err
	}
	if len(o.Run) == 0 {
		o.Run = []string{"umiak", "server"}
	}
	c := &Cluster{M: m, Evidence: o.Evidence, env: o.Env, argv: o.Run, service: o.Service || o.System != nil}
	err = c.Configure(o.Settings)
	if err == nil && len(o.Images) > 0 {
		err = c.AddImages("test.tar", o.Images...)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare cluster: %w", err), c.Destroy())
	}
	return c, nil
}

// Configure writes the settings file that the next Start reads.
func (c *Cluster) Configure(settings map[string]string) error {
	var text strings.Builder
	for _, k := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&text, "%s: %s\n", k, settings[k])
	}
	return c.M.Do(func() error {
		if err := os.MkdirAll("/etc/umiak", 0o755); err != nil {
			return err
		}
		return os.WriteFile("/etc/umiak/config.yaml", []byte(text.String()), 0o600)
	})
}

// AddImages puts the tests' images into the images folder, as one archive in the form that its name says.
func (c *Cluster) AddImages(file string, refs ...string) error {
	set, err := testImages()
	if err != nil {
		return err
	}
	dir := c.M.Host(c.dirs().Images())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return set.Write(filepath.Join(dir, file), refs...)
}

// Start runs `umiak server`, or Options.Run, with more flags, if any, and returns at once.
func (c *Cluster) Start(flags ...string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run != nil {
		select {
		case <-c.run.done:
		default:
			return errors.New("umiak runs already")
		}
	}
	log, err := os.OpenFile(c.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	cmd := c.M.Command(context.Background(), c.argv[0], append(slices.Clone(c.argv[1:]), flags...)...)
	cmd.Env = append(cmd.Env, c.env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := c.M.Start(cmd); err != nil {
		return errors.Join(fmt.Errorf("start umiak: %w", err), log.Close())
	}
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	c.run = p
	go func() {
		p.err = cmd.Wait()
		_ = log.Close()
		close(p.done)
	}()
	return nil
}

// LogFile is where umiak's output goes, of all its runs.
func (c *Cluster) LogFile() string { return filepath.Join(c.Evidence, "umiak.log") }

// PID is umiak's process, 0 when it does not run.
func (c *Cluster) PID() int {
	if p := c.running(); p != nil {
		return p.cmd.Process.Pid
	}
	return 0
}

func (c *Cluster) running() *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run == nil {
		return nil
	}
	select {
	case <-c.run.done:
		return nil
	default:
		return c.run
	}
}

// Exited is closed when the present run of umiak has ended.
func (c *Cluster) Exited() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.service {
		return nil // blocks for ever: the service is started again
	}
	if c.run == nil {
		gone := make(chan struct{})
		close(gone)
		return gone
	}
	return c.run.done
}

// ErrStop means that umiak did not end within the time it was given.
var ErrStop = errors.New("umiak does not stop")

// Stop asks umiak to end and waits for it. Its containers run on. An exit code other than 0 is an error.
func (c *Cluster) Stop(ctx context.Context) error {
	p := c.running()
	if p == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop umiak: %w", err)
	}
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("umiak ended badly: %w\n%s", p.err, c.LogTail(10))
		}
		return nil
	case <-ctx.Done():
		_ = p.cmd.Process.Signal(syscall.SIGQUIT) // leaves its goroutines in the log
		<-time.After(2 * time.Second)
		return errors.Join(ErrStop, c.Kill())
	}
}

// Kill ends umiak with SIGKILL and waits for the kernel to be done with it.
func (c *Cluster) Kill() error {
	p := c.running()
	if p == nil {
		return nil
	}
	err := p.cmd.Process.Kill()
	<-p.done
	return err
}

// Destroy takes everything away.
func (c *Cluster) Destroy() error {
	var errs []error
	if c.fwd != nil {
		errs = append(errs, c.fwd.Close())
	}
	return errors.Join(append(errs, c.Kill(), c.M.Destroy())...)
}

// Umiak runs one of umiak's commands on the machine and returns what it printed.
func (c *Cluster) Umiak(ctx context.Context, args ...string) (string, error) {
	return c.M.Run(ctx, "umiak", args...)
}

// Kubectl runs umiak's kubectl on the machine.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.Umiak(ctx, append([]string{"kubectl"}, args...)...)
}

// KubectlInput is Kubectl with something on its stdin.
func (c *Cluster) KubectlInput(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := c.M.Command(ctx, "umiak", append([]string{"kubectl"}, args...)...)
	var out, errOut strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errOut
	err := c.M.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), err
}

func (c *Cluster) dirs() layout.Dirs {
	d := Dirs()
	if c.DataDir != "" {
		d.Data = c.DataDir
	}
	return d
}

// Connect reads the administrator's kubeconfig and makes the clients; their connections come from inside
// the machine.
func (c *Cluster) Connect() error {
	cfg, err := clientcmd.BuildConfigFromFlags("", c.M.Host(c.dirs().AdminKubeconfig()))
	if err != nil {
		return err
	}
	cfg.Dial = c.M.Dial
	cfg.QPS = -1
	if c.REST = cfg; c.Kube == nil {
		if c.Kube, err = kubernetes.NewForConfig(cfg); err != nil {
			return err
		}
		if c.Dynamic, err = dynamic.NewForConfig(cfg); err != nil {
			return err
		}
	}
	return nil
}

// APIReady waits until the API server is ready, and connects to it. The first answer cannot be watched
// for, so this asks again and again.
func (c *Cluster) APIReady(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	exited := c.Exited()
	last := errors.New("no kubeconfig")
	for {
		if _, err := os.Stat(c.M.Host(c.dirs().AdminKubeconfig())); err == nil {
			if last = c.Connect(); last == nil {
				short, cancel := context.WithTimeout(ctx, 2*time.Second)
				last = c.Kube.Discovery().RESTClient().Get().AbsPath("/readyz").Do(short).Error()
				cancel()
			}
			if last == nil {
				return nil
			}
		}
		select {
		case <-exited:
			return fmt.Errorf("umiak has ended; the end of its log:\n%s", c.LogTail(20))
		case <-ctx.Done():
			return fmt.Errorf("wait for the API server: %w; last answer: %w\n%s", context.Cause(ctx), last,
				c.LogTail(20))
		case <-tick.C:
		}
	}
}

// Ready waits until the node takes pods and the images are there.
func (c *Cluster) Ready(ctx context.Context) error {
	if err := c.APIReady(ctx); err != nil {
		return err
	}
	err := errors.Join(c.NodeReady(ctx), c.ServiceAccount(ctx, metav1.NamespaceDefault))
	if err == nil {
		err = c.ImagesReady(ctx)
	}
	if err != nil {
		return fmt.Errorf("wait for the cluster: %w\n%s", err, c.LogTail(20))
	}
	return nil
}

// NodeReady waits for the node's condition.
func (c *Cluster) NodeReady(ctx context.Context) error {
	_, err := Until(ctx, c.Kube.CoreV1().Nodes(), metav1.ListOptions{FieldSelector: "metadata.name=" + c.M.Name},
		func(n *corev1.Node) (bool, string) {
			for _, cond := range n.Status.Conditions {
				if cond.Type == corev1.NodeReady {
					return cond.Status == corev1.ConditionTrue, "node " + string(cond.Status) + ": " + cond.Message
				}
			}
			return false, "node has no condition"
		})
	return err
}

// ServiceAccount waits for a namespace's default account, without which it takes no pods.
func (c *Cluster) ServiceAccount(ctx context.Context, namespace string) error {
	_, err := Until(ctx, c.Kube.CoreV1().ServiceAccounts(namespace),
		metav1.ListOptions{FieldSelector: "metadata.name=default"},
		func(*corev1.ServiceAccount) (bool, string) { return true, "" })
	return err
}

// ImagesReady waits until the images in the folder are imported, which has no event.
func (c *Cluster) ImagesReady(ctx context.Context) error {
	entries, err := os.ReadDir(c.M.Host(c.dirs().Images()))
	if err != nil || len(entries) == 0 {
		return nil // none were put there
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := c.Umiak(ctx, "ctr", "-n", "k8s.io", "images", "list", "-q")
		if err == nil && (strings.Contains(list, images.App1) || strings.Contains(list, images.Bench)) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for images: %w; there are %q, %w", context.Cause(ctx), strings.Fields(list), err)
		case <-tick.C:
		}
	}
}

// LogTail is the last lines of umiak's log.
func (c *Cluster) LogTail(lines int) string {
	if c.service {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		out, err := c.M.Run(ctx, "/usr/bin/journalctl", "-b", "-u", "umiak", "--no-pager", "-o", "cat", "-n",
			fmt.Sprint(lines))
		if err != nil {
			return err.Error()
		}
		return out
	}
	raw, err := os.ReadFile(c.LogFile())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(raw), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
