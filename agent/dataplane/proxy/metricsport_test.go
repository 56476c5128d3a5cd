package proxy

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/kubernetes/pkg/proxy/metrics"
)

// TestMetricsPort answers with the proxy's metrics and those of no other component, at kube-proxy's path.
func TestMetricsPort(t *testing.T) {
	_ = legacyregistry.Register(metrics.SyncProxyRulesLatency) // it may be registered
	metrics.SyncProxyRulesLatency.WithLabelValues("IPv4").Observe(1)
	w := httptest.NewRecorder()
	metricsHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if text := w.Body.String(); !strings.Contains(text, "kubeproxy_sync_proxy_rules_duration_seconds") ||
		strings.Contains(text, "\ngo_") {
		t.Error(text)
	}
}
