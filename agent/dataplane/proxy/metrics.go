package proxy

import (
	"github.com/prometheus/client_golang/prometheus"
	kmetrics "k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/kubernetes/pkg/proxy/metrics"
)

// registerMetrics registers kube-proxy's metrics that mean something here, under its names. Those are
// package variables of kube-proxy in a registry of the process, so a second Proxy finds them there.
func registerMetrics(reg prometheus.Registerer, p *Proxy) {
	for _, m := range []kmetrics.Registerable{
		metrics.SyncProxyRulesLatency, metrics.SyncFullProxyRulesLatency, metrics.SyncPartialProxyRulesLatency,
		metrics.SyncProxyRulesLastTimestamp, metrics.NetworkProgrammingLatency,
		metrics.EndpointChangesPending, metrics.EndpointChangesTotal,
		metrics.ServiceChangesPending, metrics.ServiceChangesTotal,
		metrics.NFTablesSyncFailuresTotal,
		metrics.ReconcileConntrackFlowsLatency, metrics.ReconcileConntrackFlowsDeletedEntriesTotal,
	} {
		_ = legacyregistry.Register(m)
	}
	if reg == nil {
		return
	}
	gauge := func(name, help string, value func(Status) float64) {
		_ = reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return value(p.Status()) }))
	}
	gauge("umiak_proxy_service_ports", "Ports of Services in the rules, one a family.",
		func(s Status) float64 { return float64(s.Services) })
	gauge("umiak_proxy_endpoints", "Endpoints in the rules, counted behind each address.",
		func(s Status) float64 { return float64(s.Endpoints) })
	gauge("umiak_proxy_repairs_total", "How often the whole table was compared with what it should be.",
		func(s Status) float64 { return float64(s.Repairs) })
}
