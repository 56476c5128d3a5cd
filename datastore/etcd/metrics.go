package etcd

import (
	"context"
	"net"
	"net/url"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// collector forwards the metrics that etcd registers with Prometheus' default registry, which is not served. A
// collector that describes no metrics cannot be unregistered, so it is switched off instead.
type collector struct {
	from prometheus.Gatherer
	off  atomic.Bool
}

// Describe implements prometheus.Collector. It sends nothing, since the set of metrics changes over time.
func (*collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	if c.off.Load() {
		return
	}
	families, _ := c.from.Gather() // with an error it returns the metrics that it could gather
	for _, f := range families {
		name := f.GetName()
		if !strings.HasPrefix(name, "etcd_") {
			continue
		}
		for _, m := range f.GetMetric() {
			var names []string
			for _, l := range m.GetLabel() {
				names = append(names, l.GetName())
			}
			out <- copied{prometheus.NewDesc(name, f.GetHelp(), names, nil), m}
		}
	}
}

// copied is a prometheus.Metric made from a gathered one.
type copied struct {
	desc *prometheus.Desc
	m    *dto.Metric
}

// Desc implements prometheus.Metric.
func (c copied) Desc() *prometheus.Desc { return c.desc }

// Write implements prometheus.Metric.
func (c copied) Write(to *dto.Metric) error {
	to.Label, to.Counter, to.Gauge, to.Histogram, to.Summary, to.Untyped = c.m.Label, c.m.Counter, c.m.Gauge,
		c.m.Histogram, c.m.Summary, c.m.Untyped
	return nil
}

// metricsURLs returns where etcd serves its metrics. A port that another program holds is left out, since etcd would not
// start without it: the metrics are served by the API server as well.
func (c Config) metricsURLs() (out []url.URL) {
	for _, address := range c.Metrics {
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
		if err != nil {
			c.Log.Error("etcd's metrics are not served at this address; the API server's have them too", "address", address,
				"error", err)
			continue
		}
		_ = l.Close()
		out = append(out, url.URL{Scheme: "http", Host: address})
	}
	return out
}
