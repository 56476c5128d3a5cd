package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/umiak-io/umiak/agent/dataplane/dns"
	"github.com/umiak-io/umiak/agent/dataplane/netpol"
	"github.com/umiak-io/umiak/agent/dataplane/network"
	"github.com/umiak-io/umiak/agent/dataplane/proxy"
	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/agent/host/folders"
	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/agent/host/resolver"
	"github.com/umiak-io/umiak/agent/kubelet"
	"github.com/umiak-io/umiak/agent/runtime/containerd"
	"github.com/umiak-io/umiak/agent/runtime/images"
	"github.com/umiak-io/umiak/agent/runtime/imageshare"
	"github.com/umiak-io/umiak/agent/runtime/programs"
	"github.com/umiak-io/umiak/agent/runtime/registries"
	"github.com/umiak-io/umiak/agent/tunnel"
	"github.com/umiak-io/umiak/agent/upgrade"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/upgrades"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// Agent is one node: what it is and, once it has joined, what it knows of its cluster.
type Agent struct {
	cfg  Config
	dirs layout.Dirs
	name string
	// nameRemark is what a person should know about the name.
	nameRemark string
	log        *slog.Logger
	joiner     Joiner

	machine atomic.Pointer[machine] // nil until the part of that name is ready

	troubles *troubles

	// ownNetwork is whether containerd looks for a network of the user's; set by the part "containerd".
	ownNetwork atomic.Pointer[bool]
	// podLogs is where the kubelet puts logs; set by the part "containerd".
	podLogs string

	registries *registries.Registries
	images     *images.Importer
	found      *found
	share      *imageshare.Share // where images are not shared, it knows no other nodes

	// member is set by the part "join"; the parts that wait for it read it.
	member     *member
	joined     chan struct{} // closed when member is set
	joinedOnce sync.Once
	othersMade atomic.Bool // see VolumeControllersMade
	// These exist once the node has joined.
	network atomic.Pointer[network.Network]
	kubelet atomic.Pointer[kubelet.Kubelet]
	dns     atomic.Pointer[dns.Server]
	proxy   atomic.Pointer[proxy.Proxy]
	policy  atomic.Pointer[netpol.Policies]
	tunnels atomic.Pointer[tunnel.Tunnels]
	resolv  atomic.Pointer[resolver.Resolver]

	addrs    *nodeip.Tracker
	ownAddrs bool // no other part of the process runs it
}

// New checks what does not depend on the machine's surroundings. The data
// directory must be locked by the caller.
func New(cfg Config, joiner Joiner, log *slog.Logger) (*Agent, error) {
	a := &Agent{cfg: cfg, dirs: cfg.Dirs(), log: log, joiner: joiner, troubles: newTroubles(), joined: make(chan struct{})}
	name, err := cfg.FindName().Claim()
	switch {
	case name.Name == "":
		return nil, err
	case err != nil:
		log.Warn("the node's name cannot be kept; it has to be the same at the next start", "node", name.Name, "error", err)
	}
	if a.name, a.nameRemark = name.Name, name.Remark; a.nameRemark != "" {
		log.Warn(a.nameRemark)
	}
	for _, f := range folders.Of(a.dirs) {
		if err := f.Check(); err != nil && (!f.Optional || !errors.Is(err, folders.ErrForeign)) {
			return nil, err // nothing has been changed yet; beside another kubelet nothing may be
		}
	}
	if has, ok := joiner.(interface{ Addresses() *nodeip.Tracker }); ok {
		a.addrs = has.Addresses()
	} else {
		// Which families the cluster has is known when the node has joined.
		a.ownAddrs = true
		kept := nodeip.Config{Asked: cfg.NodeIP, Want: nodeip.Families{V4: true, V6: true}, File: a.dirs.Addresses(), Log: log}
		if j, ok := joiner.(Earlier); ok {
			kept.Earlier = j.EarlierIPs()
		}
		a.addrs, err = nodeip.New(kept)
		if err != nil {
			return nil, err
		}
	}
	a.registries = registries.New(registries.Config{
		File: cfg.PrivateRegistry, MirrorsOnly: cfg.NoDefaultRegistry, Log: log.With("component", "registries"),
	})
	a.images = images.New(images.Config{
		Dir: a.dirs.Images(), Socket: a.dirs.ContainerdSocket(), State: filepath.Join(a.dirs.ContainerdRoot(), "images.json"),
		Parallel: cfg.ImageImportLimit, Log: log.With("component", "images"),
	})
	own, err := images.NewFinder(a.dirs.ContainerdSocket())
	if err != nil {
		return nil, err
	}
	a.found = &found{Finder: own, ids: map[digest.Digest]string{}}
	a.share = imageshare.New(imageshare.Config{
		Node: a.name, Registry: a.registries, Socket: a.dirs.ContainerdSocket(), PKI: a.dirs.AgentPKI(), Own: own, Log: log,
	})
	return a, nil
}

// Parts is everything that a node runs, in start order. cluster names the parts of the same process,
// if any, that joining relies on; containers are made ready to run meanwhile. Each part that fails is run again.
func (a *Agent) Parts(cluster ...string) []lifecycle.Part {
	var parts []lifecycle.Part
	if a.ownAddrs {
		parts = append(parts, lifecycle.Part{Name: nodeip.Part, Run: a.followAddresses})
	}
	parts = append(parts, []lifecycle.Part{
		{Name: "machine", Run: a.runMachine},
		{Name: "registries", Run: a.registries.Run},
		{Name: "containerd", Run: a.runContainerd, After: []string{"machine", "registries"}},
		{Name: "images", Run: a.images.Run, After: []string{"containerd"}},
		{Name: "join", Run: a.join, After: append([]string{"machine", nodeip.Part}, cluster...)},
		{Name: "events", Run: a.recordTroubles, After: []string{"join"}},
		{Name: "tunnel", Run: a.runTunnel, After: []string{"join"}},
		{Name: "network", Run: a.runNetwork, After: []string{"join"}},
		{Name: "routes", Run: a.runRoutes, After: []string{"join"}},
		{Name: "proxy", Run: a.runProxy, After: []string{"join"}},
		{Name: "policy", Run: a.runPolicy, After: []string{"join"}},
		{Name: "resolver", Run: a.runResolver, After: []string{"join"}},
		{Name: "dns", Run: a.runDNS, After: []string{"resolver"}},
		{Name: "tables", Run: a.watchTables, After: []string{"join"}},
		{Name: "kubelet", Run: a.runKubelet, After: []string{"resolver", "containerd"}},
		{Name: "labels", Run: a.runMarks, After: []string{"kubelet"}},
		{Name: "upgrade", Run: a.runUpgrade, After: []string{"join"}},
	}...)
	if a.cfg.ImageSharing {
		parts = append(parts, lifecycle.Part{Name: "sharing", After: []string{"join", "containerd"}, Run: func(ctx context.Context, ready func()) error {
			return a.share.Run(ctx, a.member.ips, ready)
		}})
	}
	for i, p := range parts {
		parts[i] = a.Restart(p)
	}
	return parts
}

// Forgive deals with what a library of the node would end the process for, where there is another cure. It reports
// whether it does.
func (a *Agent) Forgive(component string, reason error) bool {
	k := a.kubelet.Load()
	return component == "kubelet" && k != nil && k.Forgive(reason)
}

// Troubles takes failures of parts that run in the same process; they become Events of the Node.
func (a *Agent) Troubles() lifecycle.Reporter { return a.troubles }

// Restart has a part of the node run again when it fails, and its failures recorded as Events of the Node.
func (a *Agent) Restart(p lifecycle.Part) lifecycle.Part {
	return lifecycle.Restart(p, lifecycle.Policy{Report: a.troubles})
}

// recordTroubles makes Events of the failures of the node's parts.
func (a *Agent) recordTroubles(ctx context.Context, ready func()) error {
	ready()
	return a.troubles.Run(ctx, func(ctx context.Context, e *corev1.Event) error {
		_, err := a.member.node.CoreV1().Events(e.Namespace).Create(ctx, e, metav1.CreateOptions{})
		return err
	}, a.name, a.log)
}

// showFolders has the kubelet's root and the logs seen where the world's manifests look for them. Containers are made
// with these paths, so it comes before containerd.
func (a *Agent) showFolders() error {
	if err := folders.Kubelet(a.dirs).Show(a.machine.Load().journal); err != nil {
		return err
	}
	a.podLogs = folders.PodLogs
	if err := folders.Logs(a.dirs).Show(a.machine.Load().journal); err != nil {
		a.podLogs = a.dirs.PodLogs()
		a.log.Warn("log collectors do not find the logs of pods in /var/log/pods", "dir", a.podLogs, "error", err)
	}
	return nil
}

func (a *Agent) runContainerd(ctx context.Context, ready func()) error {
	if err := a.showFolders(); err != nil {
		return err
	}
	programs, err := programs.Unpack(ctx, a.dirs.Bundle())
	if err != nil {
		return err
	}
	// What follows can be started only once a process.
	for _, dir := range []string{a.dirs.Agent(), a.dirs.Run} {
		if err := host.TryDisk(dir); err != nil {
			return err
		}
	}
	if err := host.TryExec(ctx, programs.Runc, "--version"); err != nil {
		return err
	}
	if err := host.TryInotify(2); err != nil {
		return err
	}
	shims, err := host.ShimCgroup(a.machine.Load().cgroup, a.cfg.CgroupRoot, a.machine.Load().journal)
	if err != nil {
		return err
	}
	backend, err := a.flannelBackend(ctx)
	if err != nil {
		return err
	}
	cfg := containerd.Config{
		Dirs: a.dirs, Programs: programs, Snapshotter: a.cfg.Snapshotter, OwnNetwork: backend == network.None,
		SystemdCgroup: a.machine.Load().cgroup.Driver == host.DriverSystemd, ShimCgroup: shims, Registry: a.share,
		Log: a.log.With("component", "containerd"),
	}
	if _, err := os.Stat(cfg.CNIConfigDir()); cfg.OwnNetwork && errors.Is(err, fs.ErrNotExist) {
		if err := a.machine.Load().journal.Made(host.KindPath, cfg.CNIConfigDir()); err != nil {
			return err
		}
	}
	a.ownNetwork.Store(&cfg.OwnNetwork)
	c, err := containerd.New(cfg)
	if err != nil {
		return err
	}
	return c.Run(ctx, ready)
}

// runTunnel lets the servers on other machines reach this node's kubelet and pods.
func (a *Agent) runTunnel(ctx context.Context, ready func()) error {
	servers, ok := a.joiner.(Servers)
	if !ok {
		ready()
		<-ctx.Done()
		return nil
	}
	own := a.dirs.AgentPKI()
	t := tunnel.New(tunnel.Config{
		Servers: servers.Servers, Authorities: servers.Authorities,
		ServerCA: filepath.Join(own, "server-ca.crt"), Cert: filepath.Join(own, "agent-client.crt"), Key: filepath.Join(own, "agent-client.key"),
		Allow: tunnel.Allow{
			Node: a.name, Kubelet: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(a.cfg.KubeletPort)),
			PodRanges: func() []netip.Prefix {
				if n := a.network.Load(); n != nil {
					return n.Ranges()
				}
				return nil
			},
		},
		Log: a.log,
	})
	a.tunnels.Store(t)
	return t.Run(ctx, ready)
}

func (a *Agent) runProxy(ctx context.Context, ready func()) error {
	m := a.member
	p, err := once(&a.proxy, func() (*proxy.Proxy, error) {
		guard, _, _ := a.guard()
		return proxy.New(proxy.Config{
			NodeName: a.name, NodeIPs: m.ips, ClusterCIDR: m.ClusterCIDR, Informers: m.informers,
			HostPorts: a.sayHostPorts, Guard: guard, Log: a.log, Registerer: legacyregistry.Registerer(),
		})
	})
	if err != nil {
		return err
	}
	m.informers.Start(ctx.Done())
	var guarding sync.WaitGroup
	defer guarding.Wait()
	guarding.Go(func() { a.keepGuard(ctx, p) })
	return p.Run(ctx, ready)
}

// sayHostPorts tells the cluster, by the Node, which ports that load balancers want this host uses itself.
func (a *Agent) sayHostPorts(ctx context.Context, held string) error {
	if held == "" {
		return a.annotate(ctx, wellknown.HostPorts, nil)
	}
	return a.annotate(ctx, wellknown.HostPorts, held)
}

// annotate says something on the Node; nil takes it away.
func (a *Agent) annotate(ctx context.Context, name string, value any) error {
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{name: value}}})
	if err != nil {
		return fmt.Errorf("encode annotation: %w", err)
	}
	_, err = a.member.node.CoreV1().Nodes().Patch(ctx, a.name, types.MergePatchType, body, metav1.PatchOptions{})
	return err
}

// runUpgrade has the cluster bring this node to another version.
func (a *Agent) runUpgrade(ctx context.Context, ready func()) error {
	if a.member.UpgradesOff {
		ready()
		<-ctx.Done()
		return nil
	}
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	m := a.member
	args := []string{"--data-dir", a.dirs.Data, "--run-dir", a.dirs.Run}
	for _, s := range a.cfg.UpgradeSources {
		args = append(args, "--source", s)
	}
	f := &upgrade.Follower{
		Version: version.Version, Node: m.informers.Core().V1().Nodes().Informer(),
		Say: func(ctx context.Context, ans upgrades.Answer) error {
			text, err := json.Marshal(ans)
			if err != nil {
				return fmt.Errorf("encode answer: %w", err)
			}
			return a.annotate(ctx, upgrades.Answered, string(text))
		},
		Dir: a.dirs.Upgrade(), Lock: a.dirs.UpgradeLock(),
		Start: upgrade.Process(program, args...), Log: a.log.With("component", "upgrade"),
	}
	m.informers.Start(ctx.Done())
	return f.Run(ctx, ready)
}

func (a *Agent) runPolicy(ctx context.Context, ready func()) error {
	m := a.member
	p, err := once(&a.policy, func() (*netpol.Policies, error) {
		return netpol.New(netpol.Config{
			NodeName: a.name, ClusterCIDR: m.ClusterCIDR, Client: m.agent, Informers: m.informers,
			Socket: a.dirs.PolicySocket(), StateFile: filepath.Join(a.dirs.Agent(), "no-network-policies"), Log: a.log, Registerer: legacyregistry.Registerer(),
		})
	})
	if err != nil {
		return err
	}
	m.informers.Start(ctx.Done())
	return p.Run(ctx, ready)
}

// once makes what registers metrics, or handlers with the shared informers, once a process, although the part that it
// belongs to may be run again. Only that part stores into p.
func once[T any](p *atomic.Pointer[T], make func() (*T, error)) (*T, error) {
	if t := p.Load(); t != nil {
		return t, nil
	}
	t, err := make()
	if err == nil {
		p.Store(t)
	}
	return t, err
}

func (a *Agent) runKubelet(ctx context.Context, ready func()) error {
	m := a.member
	k, err := kubelet.New(kubelet.Config{
		NodeName: a.name, NodeIPs: m.ips, Labels: a.cfg.NodeLabel, Taints: a.cfg.NodeTaint,
		Args: a.cfg.KubeletArg, ConfigDir: a.cfg.KubeletConfigs, HideExternalIPs: len(a.cfg.NodeExternalIP) > 0, Port: int(a.cfg.KubeletPort), Dirs: a.dirs,
		Root: folders.KubeletRoot, PodLogs: a.podLogs,
		ClusterDNS: config.Texts(m.ClusterDNS), ClusterDomain: m.ClusterDomain, ResolvConf: a.dirs.PodResolvConf(),
		Cgroup: a.machine.Load().cgroup, CgroupRoot: a.cfg.CgroupRoot,
		MayLowerOOMScore: a.machine.Load().caps.Has(host.CapSysResource), OOMScoreAdj: a.machine.Load().oom,
		ShutdownGrace: a.cfg.ShutdownGrace, Journal: a.machine.Load().journal, Images: a.found, Client: m.node, Log: a.log,
	})
	if err != nil {
		return err
	}
	a.kubelet.Store(k)
	if a.othersMade.Load() {
		if err := k.VolumeControllersMade(); err != nil {
			return err
		}
	}
	if err := host.PrepareCgroup(a.machine.Load().cgroup, a.cfg.CgroupRoot, a.machine.Load().journal); err != nil {
		return err
	}
	return k.Run(ctx, ready)
}

// VolumeControllersMade tells the node that a controller manager in this process has made its volume
// controllers; see kubelet.VolumeControllersMade.
func (a *Agent) VolumeControllersMade() {
	a.othersMade.Store(true)
	if k := a.kubelet.Load(); k != nil {
		if err := k.VolumeControllersMade(); err != nil {
			a.log.Error("CSI drivers cannot register on this node until umiak is restarted", "component", "kubelet", "error", err)
		}
	}
}
