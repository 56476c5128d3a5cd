package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"

	"github.com/umiak-io/umiak/agent/dataplane/dns"
	"github.com/umiak-io/umiak/agent/dataplane/informercache"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/reconcile"
	"github.com/umiak-io/umiak/agent/dataplane/network"
	"github.com/umiak-io/umiak/agent/dataplane/serviceroute"
	"github.com/umiak-io/umiak/agent/events"
	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/agent/host/folders"
	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/agent/host/resolver"
	"github.com/umiak-io/umiak/agent/kubelet"
	"github.com/umiak-io/umiak/agent/kubelet/pullrecords"
	"github.com/umiak-io/umiak/agent/nodeobject"
	"github.com/umiak-io/umiak/agent/runtime/images"
	"github.com/umiak-io/umiak/agent/runtime/imageshare"
	"github.com/umiak-io/umiak/agent/tunnel"
	"github.com/umiak-io/umiak/agent/upgrade"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/upgrades"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// node is this machine as a member of its cluster: the parts that need to know the cluster. newNode makes it, once a
// process; its fields never change.
type node struct {
	facts     clusterFacts
	backend   string               // flannel-backend as it was known before this process joined, empty if it was not
	self      kubernetes.Interface // as system:node:NAME
	agent     kubernetes.Interface // as umiak:agent:NAME
	informers informers.SharedInformerFactory

	addrs    *nodeip.Tracker
	events   *events.Recorder
	share    *imageshare.Share
	tunnels  *tunnel.Tunnels
	network  *network.Network
	routes   *serviceroute.Routes
	proxy    reportingPart
	policies reportingPart
	resolver *resolver.Resolver
	dns      *dns.Server
	tables   *reconcile.Tables
	kubelet  *kubelet.Kubelet
	object   *nodeobject.Object
	upgrade  lifecycle.Run
}

// newNode makes the parts that need the cluster. None of them runs yet. The informers run until ctx
// ends: they outlive the parts, which may be run again. What can fail because of the facts or the settings comes
// first, since metrics and handlers can be registered only once a process.
func (a *Agent) newNode(ctx context.Context, f clusterFacts) (*node, error) {
	n := &node{facts: f, backend: a.backend, addrs: a.addrs, events: a.events, share: a.share}
	var err error
	if n.self, err = client(a.dirs.KubeletKubeconfig(), "umiak-node"); err != nil {
		return nil, err
	}
	if n.agent, err = client(a.dirs.AgentKubeconfig(), "umiak-agent"); err != nil {
		return nil, err
	}
	n.informers = informercache.Until(ctx.Done(), informercache.New(n.agent, a.name))
	n.kubelet = a.newKubelet(n)
	n.object = a.newNodeObject(n)
	if n.upgrade, err = a.newUpgrade(n); err != nil {
		return nil, err
	}
	n.tables = a.newTables(n)
	if n.network, err = a.newNetwork(f, n); err != nil {
		return nil, err
	}
	n.tunnels = a.newTunnels(n.network.Ranges)
	n.resolver = resolver.New(resolver.Config{
		Asked: a.cfg.ResolvConf, PodFile: a.dirs.PodResolvConf(), HostFile: a.dirs.HostResolvConf(),
		ClusterDNS: f.ClusterDNS,
		Changed:    func() { n.dns.ResolversChanged() }, Log: a.log,
	})
	if n.dns, err = a.newDNS(n); err != nil {
		return nil, err
	}
	n.routes = serviceroute.New(f.routedServices(), a.restoreDNS(n), a.log)
	if n.proxy, err = a.newProxy(n); err != nil {
		return nil, err
	}
	n.policies, err = a.newPolicies(n)
	return n, err
}

func (a *Agent) newKubelet(n *node) *kubelet.Kubelet {
	m := a.stage.Machine()
	socket, other := a.cfg.RuntimeSocket()
	cfg := kubelet.Config{
		RuntimeSocket: socket,
		NodeName:      a.name, NodeIPs: n.facts.ips, Labels: a.cfg.NodeLabel, Taints: a.cfg.NodeTaint,
		Args:      a.cfg.KubeletArg,
		ConfigDir: a.cfg.KubeletConfigs, HiddenAddresses: nodeobject.Types(a.cfg.ownAddresses()), Port: int(a.cfg.KubeletPort),
		Address: a.kubeletAddress(), ProtectKernel: a.cfg.ProtectKernel,
		CredentialProviders: a.cfg.credentialProviders(),
		Dirs:                a.dirs, Root: folders.KubeletRoot,
		ClusterDNS: config.Texts(n.facts.ClusterDNS), ClusterDomain: n.facts.ClusterDomain,
		ResolvConf: a.dirs.PodResolvConf(),
		Cgroup:     m.Cgroup, CgroupRoot: a.cfg.CgroupRoot,
		MayLowerOOMScore: m.Capabilities.Has(host.CapSysResource), OOMScoreAdj: m.OOMScoreAdj,
		ShutdownGrace: a.cfg.ShutdownGrace, Journal: m.Journal, Client: n.self,
		Log: a.log,
	}
	if !other {
		cfg.Images = imageStore{a.finder}
	}
	return kubelet.New(cfg)
}

// kubeletAddress returns where the kubelet listens, the zero Addr for all addresses.
func (a *Agent) kubeletAddress() netip.Addr {
	if a.onServer() || a.cfg.BindAddress.IsValid() && a.cfg.BindAddress.IsUnspecified() {
		return netip.Addr{}
	}
	return a.cfg.BindAddress
}

// imageStore is containerd's store of images as the kubelet's records of pulls need it.
type imageStore struct{ *images.Finder }

var _ kubelet.Images = imageStore{}

// All implements kubelet.Images.
func (s imageStore) All(ctx context.Context) ([]pullrecords.Image, error) {
	all, err := s.Contents(ctx)
	out := make([]pullrecords.Image, len(all))
	for i, c := range all {
		out[i] = pullrecords.Image(c)
	}
	return out, err
}

func (a *Agent) newNodeObject(n *node) *nodeobject.Object {
	cfg := nodeobject.Config{
		Name: a.name, Client: n.self, Nodes: n.informers.Core().V1().Nodes().Informer(), Settings: n.kubelet,
		Addresses: a.cfg.ownAddresses(),
	}
	if t, ok := a.joiner.(Taints); ok {
		cfg.SetTaints = t.SetTaints
	}
	return nodeobject.New(cfg)
}

// newUpgrade returns what brings this node to another version when the cluster asks for it.
func (a *Agent) newUpgrade(n *node) (lifecycle.Run, error) {
	if n.facts.UpgradesOff {
		return idle, nil
	}
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	args := []string{"--data-dir", a.dirs.Data, "--run-dir", a.dirs.Run}
	for _, s := range a.cfg.UpgradeSources {
		args = append(args, "--source", s)
	}
	f := &upgrade.Follower{
		Version: version.Version, Node: n.informers.Core().V1().Nodes().Informer(), Say: n.answerUpgrade,
		Dir: a.dirs.Upgrade(), Lock: a.dirs.UpgradeLock(),
		Start: upgrade.Process(program, args...), Log: a.log.With("component", "upgrade"),
	}
	return f.Run, nil
}

// recordEvents makes Events of failures of the node's parts.
func (n *node) recordEvents(ctx context.Context, ready func()) error {
	ready()
	n.events.Run(ctx, n.self.CoreV1())
	return nil
}

// runNetwork connects the pods. It fails where containerd, which has started by then, looks for another network.
func (n *node) runNetwork(ctx context.Context, ready func()) error {
	if was, is := n.backend, n.facts.FlannelBackend; was != "" && (was == network.None) != (is == network.None) {
		return fmt.Errorf("the cluster's flannel-backend has become %s since this node joined; restart umiak on it", is)
	}
	_, changed := n.addrs.Now()
	err := n.network.Run(ctx, ready)
	if errors.Is(err, network.ErrNoInterface) {
		return lifecycle.WakeOn(err, changed)
	}
	return err
}

// shareImages gives images to other nodes and takes them from there.
func (n *node) shareImages(ctx context.Context, ready func()) error {
	return n.share.Run(ctx, n.facts.ips, ready)
}

// publishHostPorts records on the Node which ports that load balancers want this host uses itself; empty removes it.
func (n *node) publishHostPorts(ctx context.Context, held string) error {
	if held == "" {
		return n.object.Annotate(ctx, wellknown.HostPorts, nil)
	}
	return n.object.Annotate(ctx, wellknown.HostPorts, held)
}

// answerUpgrade records on the Node how far an upgrade is that the cluster asked for.
func (n *node) answerUpgrade(ctx context.Context, ans upgrades.Answer) error {
	text, err := json.Marshal(ans)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return n.object.Annotate(ctx, upgrades.Answered, string(text))
}

// idle is the Run of a part that has nothing to do.
func idle(ctx context.Context, ready func()) error {
	ready()
	<-ctx.Done()
	return nil
}
