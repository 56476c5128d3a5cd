package kubelet

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
	"k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	"k8s.io/kubernetes/pkg/features"
	upstream "k8s.io/kubernetes/pkg/kubelet"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/agent/host/folders"
	"github.com/umiak-io/umiak/agent/kubelet/pullrecords"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/lifecycle"
)

// Config describes the node's kubelet. All fields without a stated default must be set.
type Config struct {
	NodeName string
	NodeIPs  []netip.Addr
	Labels   []string // KEY=VALUE
	Taints   []string // KEY=VALUE:EFFECT
	Args     []string // the user's kubelet flags as NAME=VALUE; they take precedence
	// HiddenAddresses are the types of addresses that the agent adds to the Node, and that the kubelet would remove.
	HiddenAddresses []v1.NodeAddressType
	// ConfigDir is the folder of the user's KubeletConfiguration files; it need not exist, and "" means none.
	ConfigDir string
	// Address is where the kubelet listens; the zero Addr means all addresses.
	Address netip.Addr
	Port    int
	// ProtectKernel makes Run fail where kernel settings differ from the kubelet's, instead of changing them.
	ProtectKernel       bool
	CredentialProviders CredentialProviders

	Dirs layout.Dirs
	// Root is the kubelet's root directory, at the path that system pods expect (agent/host/folders).
	Root string
	// PodLogs is the folder of container logs; empty means the one that agent/host/folders shows when Run starts.
	PodLogs       string
	ClusterDNS    []string
	ClusterDomain string
	ResolvConf    string

	Cgroup     host.Cgroup
	CgroupRoot string
	// MayLowerOOMScore means that the process has CAP_SYS_RESOURCE; OOMScoreAdj is the process's current score.
	MayLowerOOMScore bool
	OOMScoreAdj      int

	// ShutdownGrace is how long pods get to stop when the machine shuts down; 0 disables graceful shutdown.
	ShutdownGrace time.Duration

	Journal *host.Journal
	// RuntimeSocket is the CRI socket; "" means that of Umiak's containerd.
	RuntimeSocket string
	// Images lists the node's images. Pods may use imported ones whatever the kubelet's pull records say. It is nil
	// where the container runtime is not Umiak's, which imports none.
	Images Images
	// Client is the node's own, for waiting until the node is registered.
	Client kubernetes.Interface
	Log    *slog.Logger
}

// Kubelet is the node's kubelet. It can run once in a process.
type Kubelet struct {
	cfg    Config
	server *options.KubeletServer // made by Run
	inner  atomic.Pointer[upstream.Kubelet]
	csi    atomic.Pointer[csiGuard]
	others atomic.Bool // this process has created volume controllers
}

// New returns a Kubelet. Run reads the user's flags and files.
func New(cfg Config) *Kubelet {
	cfg.Log = cfg.Log.With("component", "kubelet")
	return &Kubelet{cfg: cfg}
}

// Run runs the kubelet until ctx ends; the pods keep running. It calls ready once the node is registered and this
// process has reported its status.
func (k *Kubelet) Run(ctx context.Context, ready func()) error {
	if err := k.configure(); err != nil {
		return err
	}
	if err := host.PrepareCgroup(k.cfg.Cgroup, k.cfg.CgroupRoot, k.cfg.Journal); err != nil {
		return err
	}
	for _, r := range k.cfg.warnings() {
		k.cfg.Log.Warn(r)
	}
	if err := k.setGates(); err != nil {
		return err
	}
	if err := k.prepare(ctx); err != nil {
		return err
	}
	var records *pullrecords.Records
	if k.cfg.Images != nil {
		var err error
		if records, err = k.prepareRecords(ctx); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	deps, err := app.UnsecuredDependencies(ctx, k.server, utilfeature.DefaultFeatureGate)
	if err != nil {
		return fmt.Errorf("prepare the kubelet: %w", err)
	}
	if err := k.addCSIGuard(deps); err != nil {
		return err
	}
	stopClients, err := k.clients(ctx, deps)
	if err != nil {
		return err
	}
	defer stopClients()
	deps.Options = append(deps.Options, func(inner *upstream.Kubelet) {
		k.inner.Store(inner)
		if records != nil {
			go k.followImports(ctx, records, inner)
		}
	})
	started := time.Now()
	go func() {
		if err := k.waitRegistered(ctx, started); err != nil {
			if ctx.Err() == nil {
				k.cfg.Log.Error("cannot determine whether the node is registered", "error", err)
			}
			return
		}
		ready()
		n, err := sweep(ctx, k.cfg.Client, k.cfg.NodeName)
		if err != nil && ctx.Err() == nil {
			k.cfg.Log.Warn("cannot delete all pods that ended when the machine was shut down", "error", err)
		}
		if n > 0 {
			k.cfg.Log.Info("deleted pods that ended when the machine was shut down", "pods", n)
		}
	}()
	// If ctx ends while it starts, it returns the errors of canceled calls.
	err = app.Run(ctx, k.server, deps, utilfeature.DefaultFeatureGate)
	if ctx.Err() != nil {
		return nil
	}
	if err == nil {
		err = errors.New("the kubelet ended unexpectedly")
	}
	return &lifecycle.ReexecError{Part: "kubelet", Err: err} // upstream's kubelet starts once per process
}

// configure makes the kubelet's configuration of the settings and of the user's files.
func (k *Kubelet) configure() error {
	cfg := k.cfg
	if cfg.PodLogs == "" {
		dir, err := folders.PodLogsDir(cfg.Dirs)
		if err != nil {
			return err
		}
		cfg.PodLogs = dir
	}
	s, err := cfg.options()
	if err != nil {
		return err
	}
	k.server = s
	return nil
}

// setGates sets the user's feature gates. Upstream's Run sets them too, but code before it reads them.
func (k *Kubelet) setGates() error {
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(k.server.FeatureGates); err != nil {
		return fmt.Errorf("kubelet-arg: feature-gates: %w", err)
	}
	return nil
}

// addCSIGuard appends the guard to the kubelet's volume plugins, after the CSI plugin.
func (k *Kubelet) addCSIGuard(deps *upstream.Dependencies) error {
	guard, err := newCSIGuard(deps.VolumePlugins)
	if err != nil {
		return err
	}
	guard.again = k.others.Load()
	deps.VolumePlugins = append(deps.VolumePlugins, guard)
	k.csi.Store(guard)
	return nil
}

// VolumeControllersMade must be called each time the controller manager in this process has created its volume
// controllers: they overwrite package variables of the CSI plugin, which the kubelet then restores.
func (k *Kubelet) VolumeControllersMade() error {
	k.others.Store(true)
	if guard := k.csi.Load(); guard != nil {
		return guard.reclaim()
	}
	return nil
}

// Labels returns the labels that the settings give the Node. The kubelet has to be ready.
func (k *Kubelet) Labels() map[string]string { return k.server.NodeLabels }

// Taints returns the taints that the settings give the Node. The kubelet has to be ready.
func (k *Kubelet) Taints() []v1.Taint { return k.server.RegisterWithTaints }

// prepare creates the folders, records in the journal what the kubelet will change on the machine, and checks for
// conditions that would make the kubelet end the process.
func (k *Kubelet) prepare(ctx context.Context) error {
	for dir, mode := range map[string]os.FileMode{
		k.server.RootDirectory: 0o750, k.server.PodLogsDir: 0o755, k.server.StaticPodPath: 0o700,
		k.server.VolumePluginDir: 0o755,
	} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return fmt.Errorf("create directory: %w", err)
		}
	}
	if err := k.record(); err != nil {
		return err
	}
	// cAdvisor gets the names of containers, pods and images from containerd, and containerd's socket from a process
	// flag. Without it, container metrics have no names.
	if err := flag.Set("containerd", k.cfg.runtimeSocket()); err != nil {
		return fmt.Errorf("set containerd's socket for cAdvisor: %w", err)
	}
	if err := relink(logLinks, k.cfg.Dirs.PodLogs(), k.server.PodLogsDir); err != nil {
		return err
	}
	if _, err := tls.LoadX509KeyPair(k.server.TLSCertFile, k.server.TLSPrivateKeyFile); err != nil {
		return fmt.Errorf("load the node's serving certificate: %w", err)
	}
	if err := checkProviders(k.server.ImageCredentialProviderConfigPath,
		k.server.ImageCredentialProviderBinDir); err != nil {
		return err
	}
	addr := net.JoinHostPort(k.server.Address, strconv.Itoa(int(k.server.Port)))
	if err := host.TryPort(ctx, "tcp", addr, "set kubelet-port"); err != nil {
		return err
	}
	return k.preflight()
}

// inotifyInstances is how many inotify instances the kubelet needs at start, plus some for its pods' volumes.
const inotifyInstances = 8

// preflight checks, once the feature gates are set, for conditions in which upstream would end the process or leave the
// kubelet half started.
func (k *Kubelet) preflight() error {
	if !host.InUserNamespace() || !utilfeature.DefaultFeatureGate.Enabled(features.KubeletInUserNamespace) {
		if err := host.TryKmsg(); err != nil {
			return err
		}
		sysctls := host.TrySysctls
		if k.server.ProtectKernelDefaults { // upstream would end the process
			sysctls = host.CheckSysctls
		}
		if err := sysctls(); err != nil {
			return err
		}
	}
	if err := host.TryInotify(inotifyInstances); err != nil {
		return err
	}
	if err := host.TryCgroups(k.cfg.Cgroup, k.server.CgroupRoot); err != nil {
		return err
	}
	for _, dir := range []string{k.server.RootDirectory, k.server.PodLogsDir} {
		if err := host.TryDisk(dir); err != nil {
			return err
		}
	}
	return nil
}

// logLinks is the folder in which the kubelet creates a link to each container's log, for log collectors.
const logLinks = "/var/log/containers"

// logindConf is the file with which the kubelet extends logind's delay of a shutdown.
const logindConf = "/etc/systemd/logind.conf.d/99-kubelet.conf"

// record writes to the journal what the kubelet will change and create on the machine.
func (k *Kubelet) record() error {
	if !k.server.ProtectKernelDefaults {
		if err := k.cfg.Journal.RecordSysctls(host.KubeletSysctls...); err != nil {
			return err
		}
	}
	paths := []string{logLinks}
	if k.server.ShutdownGracePeriod.Duration > 0 {
		paths = append(paths, logindConf)
	}
	for _, p := range paths {
		// Its folder may be new as well.
		if up := filepath.Dir(p); up != "/var/log" {
			paths = append(slices.Clone(paths), up)
		}
	}
	return errors.Join(
		k.cfg.Journal.Made(host.KindCgroup, absent(host.PodCgroups(k.cfg.Cgroup, k.server.CgroupRoot))...),
		k.cfg.Journal.Made(host.KindPath, absent(paths)...))
}

// relink redirects links in dir that point below from to the same file below to. Older builds stored logs outside
// /var/log/pods; the links of containers that still run are redirected to where log collectors' pods find the logs.
func relink(dir, from, to string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || from == to {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read links to logs: %w", err)
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		target, err := os.Readlink(name)
		rest, match := strings.CutPrefix(target, from+"/")
		if err != nil || !match {
			continue
		}
		next := filepath.Join(dir, "."+e.Name())
		if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("change link to log: %w", err)
		}
		if err := errors.Join(os.Symlink(filepath.Join(to, rest), next), os.Rename(next, name)); err != nil {
			return fmt.Errorf("change link to log: %w", err)
		}
	}
	return nil
}

func absent(paths []string) []string {
	var out []string
	for _, p := range paths {
		if _, err := os.Lstat(p); errors.Is(err, fs.ErrNotExist) {
			out = append(out, p)
		}
	}
	return out
}

// waitRegistered returns once the Node has a status that was reported after since.
func (k *Kubelet) waitRegistered(ctx context.Context, since time.Time) error {
	lw := cache.NewListWatchFromClient(k.cfg.Client.CoreV1().RESTClient(), "nodes", metav1.NamespaceAll,
		fields.OneTermEqualSelector("metadata.name", k.cfg.NodeName))
	fresh := func(n *v1.Node) bool {
		for _, c := range n.Status.Conditions {
			if c.Type == v1.NodeReady && !c.LastHeartbeatTime.Time.Before(since.Truncate(time.Second)) {
				return true
			}
		}
		return false
	}
	_, err := watchtools.UntilWithSync(ctx, lw, &v1.Node{}, nil, func(e watch.Event) (bool, error) {
		n, ok := e.Object.(*v1.Node)
		return ok && e.Type != watch.Deleted && fresh(n), nil
	})
	return err
}
