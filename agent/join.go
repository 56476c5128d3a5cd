package agent

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"

	"k8s.io/client-go/kubernetes"

	"github.com/umiak-io/umiak/agent/dataplane/proxy"
	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/kubeclient"
	"github.com/umiak-io/umiak/internal/lifecycle"
)

// join waits until the cluster has admitted the node, and makes the parts that need the cluster.
func (a *Agent) join(ctx context.Context, ready func()) error {
	now, changed := a.addrs.Now()
	if len(now.IPs) == 0 {
		return lifecycle.WakeOn(nodeip.ErrNone, changed)
	}
	if err := proxy.Exempt(ctx); err != nil {
		a.log.Warn("a rule for Services that is wrong could keep this node from its servers",
			"component", "proxy", "error", err)
	}
	cluster, err := a.joiner.Join(ctx, Node{Name: a.name, IPs: now.Texts(),
		ExternalIPs: config.Texts(a.cfg.NodeExternalIP),
		DNSNames:    slices.Concat(a.cfg.NodeInternalDNS, a.cfg.NodeExternalDNS)})
	if err != nil {
		return fmt.Errorf("join the cluster: %w", err)
	}
	if err := a.addrs.Narrow(nodeip.FamiliesOf(cluster.ClusterCIDR)); err != nil {
		return err
	}
	taken, changed, err := a.addrs.Take()
	if err != nil {
		return lifecycle.WakeOn(fmt.Errorf("the cluster's pods have addresses of %v: %w", cluster.ClusterCIDR, err),
			changed)
	}
	facts, err := factsOf(*cluster, taken.IPs)
	if err != nil {
		return err
	}
	families := nodeip.FamiliesOf(facts.ClusterCIDR)
	remarks, err := host.Forward(a.stage.Machine().Journal, families.V4, families.V6)
	if err != nil {
		return err
	}
	for _, r := range remarks {
		a.log.Warn(r)
	}
	n, err := a.newNode(ctx, facts)
	if err != nil {
		return err
	}
	n.informers.Start(ctx.Done())
	a.stage.SetNode(n)
	ready()
	<-ctx.Done()
	// Parts that use the informers have ended; the informers end with ctx.
	n.informers.Shutdown()
	return nil
}

// clusterFacts describes the cluster and the node's place in it.
type clusterFacts struct {
	Cluster
	ips     []netip.Addr // of this node
	apiPort int          // at which this node reaches the API
}

// factsOf adds to what the cluster has said what is derived from it.
func factsOf(c Cluster, ips []netip.Addr) (clusterFacts, error) {
	f := clusterFacts{Cluster: c, ips: ips}
	u, err := url.Parse(c.APIServer)
	if err != nil {
		return f, fmt.Errorf("address of the API: %w", err)
	}
	if f.apiPort, err = strconv.Atoi(u.Port()); err != nil {
		return f, fmt.Errorf("address of the API %s: %w", c.APIServer, err)
	}
	return f, nil
}

// client makes a typed client from a kubeconfig whose files may be renewed at any time.
func client(kubeconfig, name string) (kubernetes.Interface, error) {
	cfg, err := kubeclient.Source{Kubeconfig: kubeconfig}.Config(name)
	if err != nil {
		return nil, err
	}
	cfg.QPS = -1 // priority and fairness of the API server is the limit
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	return kubeclient.Of(cfg)
}
