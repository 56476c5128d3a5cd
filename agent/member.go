package agent

import (
	"context"
	"fmt"
	"net/netip"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/umiak-io/umiak/agent/dataplane/informercache"
	"github.com/umiak-io/umiak/agent/dataplane/proxy"
	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/lifecycle"
)

// member is a node in its cluster.
type member struct {
	Cluster
	ips       []netip.Addr
	node      kubernetes.Interface // as system:node:NAME
	agent     kubernetes.Interface // as umiak:agent:NAME
	informers informers.SharedInformerFactory
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
	if err := proxy.Exempt(ctx); err != nil {
		a.log.Warn("a rule for Services that is wrong could keep this node from its servers", "component", "proxy", "error", err)
	}
	cluster, err := a.joiner.Join(ctx, Node{Name: a.name, IPs: now.Texts(), ExternalIPs: config.Texts(a.cfg.NodeExternalIP)})
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
	if m.node, err = client(a.dirs.KubeletKubeconfig(), "umiak-node"); err != nil {
		return err
	}
	if m.agent, err = client(a.dirs.AgentKubeconfig(), "umiak-agent"); err != nil {
		return err
	}
	m.informers = informercache.Until(ctx.Done(), informercache.New(m.agent, a.name))
	families := nodeip.FamiliesOf(m.ClusterCIDR)
	remarks, err := host.Forward(a.machine.Load().journal, families.V4, families.V6)
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
