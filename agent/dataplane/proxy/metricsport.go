package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"k8s.io/component-base/metrics/legacyregistry"
)

// headerTimeout bounds how long a client of the metrics port takes to send its request.
const headerTimeout = 10 * time.Second

// ownMetrics returns the proxy's metrics out of those of all components of the process.
func ownMetrics() ([]*dto.MetricFamily, error) {
	all, err := legacyregistry.DefaultGatherer.Gather()
	return slices.DeleteFunc(all, func(m *dto.MetricFamily) bool {
		own, _ := strings.CutPrefix(m.GetName(), "umiak")
		return !strings.HasPrefix(own, "kubeproxy_") && !strings.HasPrefix(own, "_proxy_")
	}), err
}

// metricsHandler answers at the paths of kube-proxy's metrics port.
func metricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(prometheus.GathererFunc(ownMetrics), promhttp.HandlerOpts{}))
	mux.HandleFunc("/proxyMode", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("nftables")) // the client has gone otherwise
	})
	return mux
}

// serveMetrics serves the proxy's metrics at an address, as kube-proxy does, until ctx ends.
func serveMetrics(ctx context.Context, at netip.AddrPort) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", at.String())
	if err != nil {
		return fmt.Errorf("%s: metrics-bind-address: %w", flagsKey, err)
	}
	s := &http.Server{Handler: metricsHandler(), ReadHeaderTimeout: headerTimeout}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics at %s: %w", at, err)
	}
	return nil
}
