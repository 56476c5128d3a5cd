package sqlite

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the Prometheus metrics of a store.
type metrics struct {
	reg     prometheus.Registerer
	all     []prometheus.Collector
	commits prometheus.Histogram
	writes  prometheus.Counter
}

func newMetrics(s *Store, reg prometheus.Registerer) *metrics {
	m := &metrics{
		reg: reg,
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "umiak_datastore_commit_seconds",
			Help: "Time of a transaction, its sync to disk included.", Buckets: prometheus.ExponentialBuckets(0.0005, 2,
				14)}),
		writes: prometheus.NewCounter(prometheus.CounterOpts{Name: "umiak_datastore_writes_total",
			Help: "Writes committed; commits share a sync."}),
	}
	gauge := func(name, help string, f func() int64) {
		m.all = append(m.all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return float64(f()) }))
	}
	gauge("umiak_datastore_file_bytes", "Size of the file.", func() int64 { n, _ := s.sizes(); return n })
	gauge("umiak_datastore_wal_bytes", "Size of the write-ahead log.", func() int64 { _, n := s.sizes(); return n })
	gauge("umiak_datastore_revision", "Newest revision.", s.current.Load)
	gauge("umiak_datastore_compact_revision", "Revision below which history is gone.", s.compact.Load)
	gauge("umiak_datastore_compact_lag", "Revisions whose rows are still to be removed.",
		func() int64 { return max(s.compact.Load()-s.swept.Load(), 0) })
	m.all = append(m.all, m.commits, m.writes)
	if reg != nil {
		for _, c := range m.all {
			// A second store in one process, as in tests, has no metrics; that is not worth an error.
			_ = reg.Register(c)
		}
	}
	return m
}

// commit counts a transaction.
func (m *metrics) commit(took time.Duration, rows int) {
	m.commits.Observe(took.Seconds())
	m.writes.Add(float64(rows))
}

func (m *metrics) unregister() {
	if m.reg != nil {
		for _, c := range m.all {
			m.reg.Unregister(c)
		}
	}
}
