package proxy

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/kubernetes/pkg/proxy/metrics"

	"github.com/umiak-io/umiak/internal/testing/eventually"
)

// TestMetricsPort answers with the proxy's metrics and those of no other component, at kube-proxy's path.
func TestMetricsPort(t *testing.T) {
	_ = legacyregistry.Register(metrics.SyncProxyRulesLatency) // it may be registered
	metrics.SyncProxyRulesLatency.WithLabelValues("IPv4").Observe(1)
	w := httptest.NewRecorder()
	metricsHandler(legacyregistry.DefaultGatherer).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if text := w.Body.String(); !strings.Contains(text, "kubeproxy_sync_proxy_rules_duration_seconds") ||
		strings.Contains(text, "\ngo_") {
		t.Error(text)
	}
}

// TestMetricsPortIsBounded: while maxScrapes requests collect metrics, others are refused and collect none.
func TestMetricsPortIsBounded(t *testing.T) {
	began, finish := make(chan struct{}, maxScrapes+1), make(chan struct{})
	h := metricsHandler(prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		began <- struct{}{}
		<-finish
		return nil, nil
	}))
	get := func() int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		return w.Code
	}
	codes := make(chan int, maxScrapes)
	for range maxScrapes {
		go func() { codes <- get() }()
		<-began
	}
	refused := make(chan int, 1)
	go func() { refused <- get() }()
	select {
	case code := <-refused:
		if code != http.StatusServiceUnavailable {
			t.Errorf("one more is answered %d", code)
		}
	case <-began:
		t.Error("one more collects metrics")
	}
	close(finish)
	for range maxScrapes {
		if code := <-codes; code != http.StatusOK {
			t.Errorf("a slow one is answered %d", code)
		}
	}
	if code := get(); code != http.StatusOK {
		t.Errorf("a later one is answered %d", code)
	}
}

// TestMetricsPortThatIsTaken: the status names a taken port, and the port is served once it is free.
func TestMetricsPortThatIsTaken(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	m := newMetricsServer(netip.MustParseAddrPort(other.Addr().String()), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.run(ctx)
	}()
	becomes := func(state, detail string) {
		t.Helper()
		eventually.True(t, "the state "+state, func() bool {
			rows := m.rows()
			return len(rows) == 1 && rows[0].State == state && strings.Contains(rows[0].Detail, detail)
		})
	}
	becomes("failing", "metrics-bind-address: listen tcp "+m.at.String())
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	becomes("listening", m.at.String())
	cancel()
	<-ended
	if rows := newMetricsServer(netip.AddrPort{}, m.log).rows(); rows != nil {
		t.Errorf("rows of a node without a metrics port: %v", rows)
	}
}
