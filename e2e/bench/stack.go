package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/images"
	"github.com/umiak-io/umiak/e2e/machine"
)

// stack is a way to run a cluster of one node from an empty state.
type stack interface {
	name() string
	// start begins a new cluster and returns the moment of its first exec.
	start(ctx context.Context) (time.Time, error)
	// config says how to reach its API server; an error means not yet.
	config() (*rest.Config, error)
	// processes lists all that belongs to it now.
	processes() []machine.Process
	// image and shell say how its busybox image is called and used.
	image() string
	stop() error
}

// audited is a stack with an audit log.
type audited interface{ auditBytes() float64 }

// umiakStack is umiak as a user gets it: the image lies in the images folder and is imported while the
// cluster starts.
type umiakStack struct {
	c        *cluster.Cluster
	settings map[string]string
	dist     string // the folder of the build; empty is cluster.Dist
}

func (u *umiakStack) name() string  { return "umiak" }
func (u *umiakStack) image() string { return images.Bench }

func (u *umiakStack) start(context.Context) (time.Time, error) {
	c, err := cluster.New(cluster.Options{Name: "bench", Images: []string{images.Bench}, Settings: u.settings,
		Dist: u.dist})
	if err != nil {
		return time.Time{}, err
	}
	u.c = c
	t0 := time.Now()
	return t0, c.Start()
}

func (u *umiakStack) config() (*rest.Config, error) {
	select {
	case <-u.c.Exited():
		return nil, fmt.Errorf("umiak has ended:\n%s", u.c.LogTail(10))
	default:
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", u.c.M.Host(cluster.Dirs().AdminKubeconfig()))
	if err != nil {
		return nil, err
	}
	cfg.Dial = u.c.M.Dial
	return cfg, nil
}

func (u *umiakStack) processes() []machine.Process { return u.c.M.Processes() }

// auditBytes is how long its audit log is, 0 where a build has none.
func (u *umiakStack) auditBytes() float64 {
	st, err := os.Stat(u.c.M.Host(filepath.Join(cluster.Dirs().Server(), "audit", "audit.log")))
	if err != nil {
		return 0
	}
	return float64(st.Size())
}

var _ audited = (*umiakStack)(nil)

func (u *umiakStack) stop() error {
	if u.c == nil {
		return nil
	}
	c := u.c
	u.c = nil
	err := c.Destroy()
	if err == nil {
		_ = os.RemoveAll(c.Evidence)
	}
	return err
}

// vanilla is what kubeadm installs, each part a process of its own. Its scripts are not ours; they are
// called where they are.
type vanilla struct{ scripts, state, built string }

func newVanilla(dir string) *vanilla {
	return &vanilla{scripts: filepath.Join(dir, "vanilla"), built: peersBuilt(),
		state: filepath.Join(peersBuilt(), "state")}
}

func (v *vanilla) name() string  { return "vanilla" }
func (v *vanilla) image() string { return "bb:1" }

func (v *vanilla) script(ctx context.Context, name string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(v.scripts, name))
	cmd.Env = append(os.Environ(), "PEERS="+v.built, "S="+v.state)
	return cmd
}

func (v *vanilla) start(ctx context.Context) (time.Time, error) {
	if _, err := os.Stat(filepath.Join(v.built, "bin", "kube-apiserver")); err != nil {
		return time.Time{}, fmt.Errorf("the peers are not built; run %s: %w",
			filepath.Join(filepath.Dir(v.scripts), "build"), err)
	}
	if err := v.stop(); err != nil {
		return time.Time{}, err
	}
	up := v.script(ctx, "up")
	log, err := os.Create(filepath.Join(v.built, "up.log"))
	if err != nil {
		return time.Time{}, err
	}
	defer log.Close() //nolint:errcheck // only kept to be looked at
	up.Stdout, up.Stderr = log, log
	if err := up.Start(); err != nil {
		return time.Time{}, err
	}
	ended := make(chan error, 1)
	go func() { ended <- up.Wait() }()
	// It prepares for a while, then notes the time and starts the first process.
	for {
		raw, err := os.ReadFile(filepath.Join(v.state, "t0"))
		if n, e := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64); err == nil && e == nil {
			return time.Unix(0, n), nil
		}
		select {
		case err := <-ended:
			return time.Time{}, fmt.Errorf("vanilla/up ended early, see %s: %w", log.Name(), err)
		case <-ctx.Done():
			return time.Time{}, context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (v *vanilla) holder() (int, error) {
	raw, err := os.ReadFile(filepath.Join(v.state, "pid", "holder"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(raw)))
}

func (v *vanilla) config() (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", filepath.Join(v.state, "pki", "admin.conf"))
	if err != nil {
		return nil, err
	}
	pid, err := v.holder()
	cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		return machine.DialFrom(ctx, pid, network, addr)
	}
	return cfg, err
}

func (v *vanilla) processes() []machine.Process {
	pid, err := v.holder()
	if err != nil {
		return nil
	}
	return machine.ProcessesInMountNamespaceOf(pid)
}

func (v *vanilla) stop() error {
	out, err := v.script(context.Background(), "down").CombinedOutput()
	if err != nil {
		return fmt.Errorf("vanilla/down: %w: %s", err, out)
	}
	return nil
}

// client is a Clientset with a connection of its own.
func client(s stack) (*kubernetes.Clientset, error) {
	cfg, err := s.config()
	if err != nil {
		return nil, err
	}
	cfg.QPS = -1
	return kubernetes.NewForConfig(cfg)
}

// apiReady asks until /readyz says ok.
func apiReady(ctx context.Context, s stack) (*kubernetes.Clientset, error) {
	var last error
	for {
		k, err := client(s)
		if err == nil {
			short, cancel := context.WithTimeout(ctx, 2*time.Second)
			err = k.Discovery().RESTClient().Get().AbsPath("/readyz").Do(short).Error()
			cancel()
			if err == nil {
				return k, nil
			}
		}
		last = err
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; last answer: %w", context.Cause(ctx), last)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
