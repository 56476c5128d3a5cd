package etcd

import (
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// collector hands on what etcd registers with prometheus' default registry, which nobody serves. What describes nothing
// cannot be unregistered, so it is turned off instead.
type collector struct {
	from prometheus.Gatherer
	off  atomic.Bool
}

// Describe sends nothing: what there is depends on what has happened.
func (*collector) Describe(chan<- *prometheus.Desc) {}

// Collect is part of prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	if c.off.Load() {
		return
	}
	families, _ := c.from.Gather() // what could be gathered is there also with an error
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

// copied is a metric as it was gathered.
type copied struct {
	desc *prometheus.Desc
	m    *dto.Metric
}

// Desc is part of prometheus.Metric.
func (c copied) Desc() *prometheus.Desc { return c.desc }

// Write is part of prometheus.Metric.
func (c copied) Write(to *dto.Metric) error {
	to.Label, to.Counter, to.Gauge, to.Histogram, to.Summary, to.Untyped = c.m.Label, c.m.Counter, c.m.Gauge, c.m.Histogram, c.m.Summary, c.m.Untyped
	return nil
}
