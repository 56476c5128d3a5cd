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
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/umiak-io/umiak/agent/bundle"
	"github.com/umiak-io/umiak/agent/containerd"
	"github.com/umiak-io/umiak/agent/dns"
	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/agent/host/folders"
	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/agent/host/resolver"
	"github.com/umiak-io/umiak/agent/images"
	"github.com/umiak-io/umiak/agent/kubelet"
	"github.com/umiak-io/umiak/agent/netpol"
	"github.com/umiak-io/umiak/agent/network"
	"github.com/umiak-io/umiak/agent/proxy"
	"github.com/umiak-io/umiak/agent/registries"
	"github.com/umiak-io/umiak/agent/share"
	"github.com/umiak-io/umiak/agent/tunnel"
	"github.com/umiak-io/umiak/agent/upgrade"
	"github.com/umiak-io/umiak/agent/watched"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/names"
	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/internal/upgrades"
	"github.com/umiak-io/umiak/internal/version"
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
	share      *share.Share // where images are not shared, it knows no other nodes

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

// member is a node in its cluster.
type member struct {
	Cluster
	ips                      []netip.Addr
	clusterCIDR, serviceCIDR []netip.Prefix
	dns                      []netip.Addr
	node                     kubernetes.Interface // as system:node:NAME
	agent                    kubernetes.Interface // as umiak:agent:NAME
	informers                informers.SharedInformerFactory
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
		if err := f.Check(); err != nil {
			return nil, err
		}
	}
	if has, ok := joiner.(interface{ Addresses() *nodeip.Tracker }); ok {
		a.addrs = has.Addresses()
	} else {
		// Which families the cluster has is known when the node has joined.
		a.ownAddrs = true
		a.addrs, err = nodeip.New(nodeip.Config{Asked: cfg.NodeIP, Want: nodeip.Families{V4: true, V6: true}, File: a.dirs.Addresses(), Log: log})
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
	a.share = share.New(share.Config{
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
	programs, err := bundle.Unpack(ctx, a.dirs.Bundle())
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

// flannelBackend returns the cluster's, which decides where containerd looks for the network. A machine that joins its
// first cluster learns it only then.
func (a *Agent) flannelBackend(ctx context.Context) (string, error) {
	if b, ok := a.joiner.(Backend); ok {
		if name := b.FlannelBackend(); name != "" {
			return name, nil
		}
	}
	select {
	case <-a.joined:
		return a.member.FlannelBackend, nil
	case <-ctx.Done():
		return "", fmt.Errorf("wait to join a cluster: %w", context.Cause(ctx))
	}
}

// join waits until the cluster has taken the node in, and makes the clients that the others share.
func (a *Agent) join(ctx context.Context, ready func()) error {
	now, changed := a.addrs.Now()
	if len(now.IPs) == 0 {
		return lifecycle.WakeOn(nodeip.ErrNone, changed)
	}
	cluster, err := a.joiner.Join(ctx, Node{Name: a.name, IPs: now.Texts(), ExternalIPs: a.cfg.NodeExternalIP})
	if err != nil {
		return fmt.Errorf("join the cluster: %w", err)
	}
	if err := a.addrs.Narrow(nodeip.FamiliesOf(cluster.ClusterCIDR)); err != nil {
		return err
	}
	taken, changed, err := a.addrs.Take()
	if err != nil {
		return lifecycle.WakeOn(fmt.Errorf("the cluster's pods have addresses of %v: %w", cluster.ClusterCIDR, err), changed)
	}
	m := &member{Cluster: *cluster, ips: taken.IPs}
	if m.clusterCIDR, err = prefixes(cluster.ClusterCIDR); err != nil {
		return err
	}
	if m.serviceCIDR, err = prefixes(cluster.ServiceCIDR); err != nil {
		return err
	}
	for _, s := range cluster.ClusterDNS {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("address of cluster DNS: %w", err)
		}
		m.dns = append(m.dns, ip)
	}
	if m.node, err = client(a.dirs.KubeletKubeconfig(), "umiak-node"); err != nil {
		return err
	}
	if m.agent, err = client(a.dirs.AgentKubeconfig(), "umiak-agent"); err != nil {
		return err
	}
	m.informers = watched.Until(ctx.Done(), watched.New(m.agent, a.name))
	var v4, v6 bool
	for _, p := range m.clusterCIDR {
		v4, v6 = v4 || p.Addr().Is4(), v6 || p.Addr().Is6()
	}
	remarks, err := host.Forward(a.machine.Load().journal, v4, v6)
	if err != nil {
		return err
	}
	for _, r := range remarks {
		a.log.Warn(r)
	}
	a.member = m
	a.joinedOnce.Do(func() { close(a.joined) })
	ready()
	<-ctx.Done()
	// The informers' goroutines end with the parts that started them.
	m.informers.Shutdown()
	return nil
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
		return proxy.New(proxy.Config{
			NodeName: a.name, NodeIPs: m.ips, ClusterCIDR: m.clusterCIDR, Informers: m.informers,
			HostPorts: a.sayHostPorts, Log: a.log, Registerer: legacyregistry.Registerer(),
		})
	})
	if err != nil {
		return err
	}
	m.informers.Start(ctx.Done())
	return p.Run(ctx, ready)
}

// sayHostPorts tells the cluster, by the Node, which ports that load balancers want this host uses itself.
func (a *Agent) sayHostPorts(ctx context.Context, held string) error {
	if held == "" {
		return a.annotate(ctx, names.HostPorts, nil)
	}
	return a.annotate(ctx, names.HostPorts, held)
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
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	m := a.member
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
		Start: upgrade.Process(program, "--data-dir", a.dirs.Data, "--run-dir", a.dirs.Run), Log: a.log.With("component", "upgrade"),
	}
	m.informers.Start(ctx.Done())
	return f.Run(ctx, ready)
}

func (a *Agent) runPolicy(ctx context.Context, ready func()) error {
	m := a.member
	p, err := once(&a.policy, func() (*netpol.Policies, error) {
		return netpol.New(netpol.Config{
			NodeName: a.name, ClusterCIDR: m.clusterCIDR, Client: m.agent, Informers: m.informers,
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
	grace, err := a.cfg.Grace()
	if err != nil {
		return err
	}
	k, err := kubelet.New(kubelet.Config{
		NodeName: a.name, NodeIPs: m.ips, Labels: a.cfg.NodeLabel, Taints: a.cfg.NodeTaint,
		Args: a.cfg.KubeletArg, ConfigDir: a.cfg.KubeletConfigs, HideExternalIPs: len(a.cfg.NodeExternalIP) > 0, Port: a.cfg.KubeletPort, Dirs: a.dirs,
		Root: folders.KubeletRoot, PodLogs: a.podLogs,
		ClusterDNS: m.ClusterDNS, ClusterDomain: m.ClusterDomain, ResolvConf: a.dirs.PodResolvConf(),
		Cgroup: a.machine.Load().cgroup, CgroupRoot: a.cfg.CgroupRoot,
		MayLowerOOMScore: a.machine.Load().caps.Has(host.CapSysResource), OOMScoreAdj: a.machine.Load().oom,
		ShutdownGrace: grace, Journal: a.machine.Load().journal, Images: a.found, Client: m.node, Log: a.log,
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

// Sources are the node's sections of `umiak status`.
func (a *Agent) Sources() []status.Source {
	return []status.Source{
		func(context.Context) status.Section {
			row := status.Row{Name: a.name, Detail: a.nameRemark}
			if m := a.machine.Load(); m != nil {
				row.State = fmt.Sprintf("cgroup v%d, %s", m.cgroup.Version, m.cgroup.Driver)
			}
			return status.Section{Name: "Node", Rows: append([]status.Row{row}, a.addrs.Rows()...)}
		},
		a.registries.Status,
		a.imageRows,
		a.sharingRows,
		func(ctx context.Context) status.Section {
			if t := a.tunnels.Load(); t != nil {
				return t.Status(ctx)
			}
			return status.Section{Name: "Tunnels to servers"}
		},
		a.proxyRows,
		a.policyRows,
		func(ctx context.Context) status.Section {
			out := status.Section{Name: "DNS"}
			if s := a.dns.Load(); s != nil {
				out = s.Status(ctx)
			}
			if r := a.resolv.Load(); r != nil {
				out.Rows = append(out.Rows, r.Status())
			}
			return out
		},
	}
}

func (a *Agent) proxyRows(context.Context) status.Section {
	out := status.Section{Name: "Services"}
	p := a.proxy.Load()
	if p == nil {
		return out
	}
	s := p.Status()
	row := status.Row{Name: "rules", State: "in force", Detail: fmt.Sprintf("%d ports of Services, %d endpoints, %d repairs", s.Services, s.Endpoints, s.Repairs)}
	switch {
	case s.LastError != "":
		row.State, row.Detail = "failing", s.LastError
	case !s.Ready:
		row.State = "starting"
	}
	out.Rows = append(out.Rows, row)
	return out
}

func (a *Agent) policyRows(context.Context) status.Section {
	out := status.Section{Name: "Network policies"}
	p := a.policy.Load()
	if p == nil {
		return out
	}
	s := p.Status()
	row := status.Row{Name: "rules", State: "in force", Detail: fmt.Sprintf("%d policies, %d pods here, %d in the cluster, %d repairs", s.Policies, s.LocalPods, s.Pods, s.Repairs)}
	switch {
	case s.LastError != "":
		row.State, row.Detail = "failing", s.LastError
	case !s.Ready:
		row.State = "starting"
	case s.Warning != "":
		row.State, row.Detail = "incomplete", s.Warning
	case s.Policies == 0:
		row.State, row.Detail = "none", ""
	}
	out.Rows = append(out.Rows, row)
	return out
}

// client makes a typed client from a kubeconfig whose files may be renewed at any time.
func client(kubeconfig, name string) (kubernetes.Interface, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", kubeconfig, err)
	}
	rest.AddUserAgent(cfg, name)
	cfg.QPS = -1 // priority and fairness of the API server is the limit
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	return kubernetes.NewForConfig(cfg)
}

func prefixes(in []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range in {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("address range from the cluster: %w", err)
		}
		out = append(out, p)
	}
	return out, nil
}
