package etcd

import (
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
