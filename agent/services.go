package agent

import (
	"context"
	"path/filepath"
	"sync"

	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netpol"
	"github.com/umiak-io/umiak/agent/dataplane/proxy"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
	"github.com/umiak-io/umiak/agent/dataplane/serviceguard"
)

// newProxy returns the part that serves Services.
func (a *Agent) newProxy(n *node) (reportingPart, error) {
	if n.facts.KubeProxyOff {
		return switchedOff{proxy.SectionName, "disable-kube-proxy", removeProxy}, nil
	}
	flags, err := proxy.ParseFlags(a.cfg.KubeProxyArg)
	if err != nil {
		return nil, err
	}
	guard := a.newGuard(n.facts)
	p, err := proxy.New(proxy.Config{
		NodeName: a.name, NodeIPs: n.facts.ips, ClusterCIDR: n.facts.ClusterCIDR, Flags: flags, Informers: n.informers,
		HostPorts: n.publishHostPorts, Guard: guard.Guard(), Log: a.log, Registerer: legacyregistry.Registerer(),
	})
	return guardedProxy{p, guard}, err
}

func removeProxy(ctx context.Context) error {
	_, err := netfilter.Remove(ctx, rules.TableName)
	return err
}

// guardedProxy is the proxy with what Services may not take on this node.
type guardedProxy struct {
	*proxy.Proxy
	guard *serviceguard.Source
}

// Run serves Services, and updates the guard meanwhile.
func (p guardedProxy) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	var guarding sync.WaitGroup
	defer guarding.Wait()
	defer cancel() // first: Run may have failed
	guarding.Go(func() { p.guard.Follow(ctx, p.SetGuard) })
	return p.Proxy.Run(ctx, ready)
}

// newPolicies returns the part that enforces NetworkPolicies.
func (a *Agent) newPolicies(n *node) (reportingPart, error) {
	record := filepath.Join(a.dirs.Agent(), "no-network-policies")
	if n.facts.NetworkPolicyOff {
		return switchedOff{netpol.SectionName, "disable-network-policy", func(ctx context.Context) error {
			return netpol.Off(ctx, record)
		}}, nil
	}
	return netpol.New(netpol.Config{
		NodeName: a.name, ClusterCIDR: n.facts.ClusterCIDR, Client: n.agent, Informers: n.informers,
		Socket: a.policySocket(n.facts), StateFile: record, Log: a.log, Registerer: legacyregistry.Registerer(),
	})
}

// policySocket returns where the CNI plugin announces pods to the policies, "" where none are enforced.
func (a *Agent) policySocket(f clusterFacts) string {
	if f.NetworkPolicyOff {
		return ""
	}
	return a.dirs.PolicySocket()
}
