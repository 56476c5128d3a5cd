package proxy

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/kubernetes/pkg/proxy/metrics"
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
