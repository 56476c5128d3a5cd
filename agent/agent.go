package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"

	"github.com/umiak-io/umiak/agent/apibalancer"
	"github.com/umiak-io/umiak/agent/events"
	"github.com/umiak-io/umiak/agent/host/folders"
	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/agent/runtime/foreign"
	"github.com/umiak-io/umiak/agent/runtime/images"
	"github.com/umiak-io/umiak/agent/runtime/imageshare"
	"github.com/umiak-io/umiak/agent/runtime/registries"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/lifecycle"
)

// Agent is this machine before it has joined a cluster: its settings and the parts that need no cluster. What joining
// adds is a node.
type Agent struct {
	cfg        Config
	dirs       layout.Dirs
	name       string
	nameRemark string // what a person should know about the name, empty if there is nothing
	log        *slog.Logger
	joiner     Joiner
	backend    string // the cluster's flannel-backend as it was known before this process joined, empty if it was not

	addrs      *nodeip.Tracker
	ownAddrs   bool // the Tracker is a part of the Agent; otherwise the server of this process runs it
	events     *events.Recorder
	registries *registries.Registries
	images     *images.Importer
	finder     *images.Finder
	share      *imageshare.Share
	foreign    *foreign.Runtime      // the container runtime, nil where it is Umiak's
	servers    *apibalancer.Balancer // nil unless this machine's server is needed at lb-server-port

	stage *stage
}

// New checks what does not depend on the machine's surroundings. The data directory must be locked by the caller.
func New(cfg Config, joiner Joiner, log *slog.Logger) (*Agent, error) {
	socket, other := cfg.RuntimeSocket()
	if other {
		cfg.ImageSharing = false // it has containerd's store and pulls, which are not Umiak's
	}
	a := &Agent{cfg: cfg, dirs: cfg.Dirs(), log: log, joiner: joiner, stage: newStage(log)}
	if err := a.claimName(); err != nil {
		return nil, err
	}
	for _, f := range folders.Of(a.dirs) {
		if err := f.Check(); err != nil && (!f.Optional || !errors.Is(err, folders.ErrForeign)) {
			return nil, err // nothing has been changed yet; beside another kubelet nothing may be
		}
	}
	if err := a.trackAddresses(); err != nil {
		return nil, err
	}
	if b, ok := joiner.(Backend); ok {
		a.backend = b.FlannelBackend()
	}
	if other {
		a.foreign = foreign.New(socket, log)
	}
	if l, ok := joiner.(LocalServer); ok && l.LocalServer() != "" {
		var err error
		if a.servers, err = apibalancer.New(apibalancer.Config{Given: l.LocalServer(), Log: log,
			Listen: net.JoinHostPort("127.0.0.1", cfg.BalancerPort.String())}); err != nil {
			return nil, err
		}
	}
	a.events = events.New(a.name, log)
	a.registries = registries.New(registries.Config{
		File: cfg.PrivateRegistry, MirrorsOnly: cfg.NoDefaultRegistry, Log: log.With("component", "registries"),
	})
	a.images = images.New(images.Config{
		Dir: a.dirs.Images(), Socket: socket,
		State:    filepath.Join(a.dirs.ContainerdRoot(), "images.json"),
		Parallel: cfg.ImageImportLimit, Log: log.With("component", "images"),
	})
	var err error
	if a.finder, err = images.NewFinder(socket); err != nil {
		return nil, err
	}
	a.share = imageshare.New(imageshare.Config{
		Off: !cfg.ImageSharing, Node: a.name, Registry: a.registries, Own: a.finder,
		Socket: socket, PKI: a.dirs.AgentPKI(), Log: log,
	})
	return a, nil
}

// claimName finds the node's name and records it for the next start.
func (a *Agent) claimName() error {
	name, err := a.cfg.FindName().Claim()
	if name.Name == "" {
		return err
	}
	if err != nil {
		a.log.Warn("the node's name cannot be kept; it has to be the same at the next start",
			"node", name.Name, "error", err)
	}
	if a.name, a.nameRemark = name.Name, name.Remark; a.nameRemark != "" {
		a.log.Warn(a.nameRemark)
	}
	return nil
}

// trackAddresses takes the server's Tracker where there is one, and makes one otherwise.
func (a *Agent) trackAddresses() (err error) {
	if has, ok := a.joiner.(interface{ Addresses() *nodeip.Tracker }); ok {
		a.addrs = has.Addresses()
		return nil
	}
	a.ownAddrs = true
	// Which families the cluster has is known when the node has joined.
	cfg := nodeip.Config{Asked: a.cfg.NodeIP, Want: nodeip.Families{V4: true, V6: true}, File: a.dirs.Addresses(),
		Log: a.log}
	if j, ok := a.joiner.(Earlier); ok {
		cfg.Earlier = j.EarlierIPs()
	}
	a.addrs, err = nodeip.New(cfg)
	return err
}

// Parts lists everything that a node runs, in start order. cluster names the parts of the same process, if any, that
// joining relies on; containers are made ready to run meanwhile. A part that fails is run again.
func (a *Agent) Parts(cluster ...string) []lifecycle.Part {
	type part = lifecycle.Part
	type run = lifecycle.Run
	after := func(names ...string) []string { return names }
	var parts []part
	if a.ownAddrs {
		parts = append(parts, part{Name: nodeip.Part, Run: a.followAddresses})
	}
	parts = append(parts, part{Name: "machine", Run: a.runMachine})
	runtime := "containerd"
	if a.foreign != nil {
		runtime = "container-runtime"
		parts = append(parts, part{Name: runtime, After: after("machine"), Run: a.runForeign})
	} else {
		parts = append(parts, part{Name: "registries", Run: a.registries.Run},
			part{Name: runtime, After: after("machine", "registries"), Run: a.runContainerd},
			part{Name: "images", After: after(runtime), Run: a.images.Run})
	}
	parts = append(parts, []part{
		{Name: "join", After: after(append(cluster, "machine", nodeip.Part)...), Run: a.join},
		{Name: "events", After: after("join"), Run: a.member(func(n *node) run { return n.recordEvents })},
		{Name: "tunnel", After: after("join"), Run: a.member(func(n *node) run { return n.tunnels.Run })},
		{Name: "network", After: after("join"), Run: a.member(func(n *node) run { return n.runNetwork })},
		{Name: "routes", After: after("join"), Run: a.member(func(n *node) run { return n.routes.Run })},
		{Name: "proxy", After: after("join"), Run: a.member(func(n *node) run { return n.proxy.Run })},
		{Name: "policy", After: after("join"), Run: a.member(func(n *node) run { return n.policies.Run })},
		{Name: "resolver", After: after("join"), Run: a.member(func(n *node) run { return n.resolver.Run })},
		{Name: "dns", After: after("resolver"), Run: a.member(func(n *node) run { return n.dns.Run })},
		{Name: "tables", After: after("join"), Run: a.member(func(n *node) run { return n.tables.Run })},
		{Name: "kubelet", After: after("resolver", runtime),
			Run: a.member(func(n *node) run { return n.kubelet.Run })},
		{Name: "labels", After: after("kubelet"), Run: a.member(func(n *node) run { return n.object.Run })},
		{Name: "upgrade", After: after("join"), Run: a.member(func(n *node) run { return n.upgrade })},
	}...)
	if _, ok := a.joiner.(Facts); ok {
		parts = append(parts, part{Name: settingsPart, After: after("join"), Run: a.followFacts})
	}
	if a.servers != nil {
		parts = append(parts, part{Name: "servers", Run: a.servers.Run})
	}
	if a.cfg.ImageSharing {
		parts = append(parts, part{
			Name: "sharing", After: after("join", runtime),
			Run: a.member(func(n *node) run { return n.shareImages }),
		})
	}
	for i, p := range parts {
		parts[i] = a.Restart(p)
	}
	return parts
}

// member returns the Run of a part that needs the cluster. The part waits for the part "join", so there is a node.
func (a *Agent) member(of func(*node) lifecycle.Run) lifecycle.Run {
	return func(ctx context.Context, ready func()) error { return of(a.stage.Node())(ctx, ready) }
}

// Restart returns the part with a policy to run it again when it fails. Failures become Events of the Node.
func (a *Agent) Restart(p lifecycle.Part) lifecycle.Part {
	return lifecycle.Restart(p, lifecycle.Policy{Report: a.events})
}

// Troubles returns the reporter of failures, for parts of others in the same process; they become Events of the Node.
func (a *Agent) Troubles() lifecycle.Reporter { return a.events }

// Forgive handles a library's wish to end the process where there is another cure. It reports whether there is.
func (a *Agent) Forgive(component string, reason error) bool {
	n := a.stage.Node()
	return component == "kubelet" && n != nil && n.kubelet.Forgive(reason)
}

// VolumeControllersMade is to be called when a controller manager in this process has made its volume controllers; see
// kubelet.VolumeControllersMade.
func (a *Agent) VolumeControllersMade() { a.stage.VolumeControllersMade() }
