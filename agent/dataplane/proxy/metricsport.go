package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/umiak-io/umiak/internal/retry"
	"github.com/umiak-io/umiak/internal/status"
)

// Bounds of the metrics port, which answers without authentication.
const (
	headerTimeout = 10 * time.Second // a client sends its request
	writeTimeout  = 30 * time.Second // the metrics are collected and the client receives them
	// maxScrapes bounds the requests that collect metrics at the same time: each collects those of the whole process.
	// Others are answered 503.
	maxScrapes = 2
)

// ownMetrics returns the proxy's metrics out of those that a gatherer has of all components of the process.
func ownMetrics(process prometheus.Gatherer) ([]*dto.MetricFamily, error) {
	all, err := process.Gather()
	return slices.DeleteFunc(all, func(m *dto.MetricFamily) bool {
		own, _ := strings.CutPrefix(m.GetName(), "umiak")
		return !strings.HasPrefix(own, "kubeproxy_") && !strings.HasPrefix(own, "_proxy_")
	}), err
}

// metricsHandler answers at the paths of kube-proxy's metrics port. process has the metrics of all components.
func metricsHandler(process prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	own := func() ([]*dto.MetricFamily, error) { return ownMetrics(process) }
	mux.Handle("/metrics", promhttp.HandlerFor(prometheus.GathererFunc(own),
		promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	mux.HandleFunc("/proxyMode", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("nftables")) // the client has gone otherwise
	})
	return mux
}

// metricsServer serves the proxy's metrics at an address. While the port is taken it tries again.
type metricsServer struct {
	at  netip.AddrPort // invalid: nowhere
	log *slog.Logger

	mu    sync.Mutex
	state string // as in the row of the status
	err   error  // why it is not served
}

func newMetricsServer(at netip.AddrPort, log *slog.Logger) *metricsServer {
	return &metricsServer{at: at, log: log, state: "starting"}
}

// run serves until ctx ends.
func (m *metricsServer) run(ctx context.Context) {
	if !m.at.IsValid() {
		return
	}
	var news retry.News
	retry.Forever(ctx, retry.Backoff{}, time.Minute, func(err error, pause time.Duration) {
		m.set("failing", err)
		if news.Is(err) {
			m.log.Error("cannot serve metrics, trying again", "error", err, "in", pause)
		}
	}, func(ctx context.Context) error {
		return serveMetrics(ctx, m.at, func() {
			m.set("listening", nil)
			news.Is(nil) // a later failure is reported again
		})
	})
}

func (m *metricsServer) set(state string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state, m.err = state, err
}

// rows returns a row for the status if the settings ask for the port.
func (m *metricsServer) rows() []status.Row {
	if !m.at.IsValid() {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	row := status.Row{Name: "metrics", State: m.state, Detail: m.at.String()}
	if m.err != nil {
		row.Detail = m.err.Error()
	}
	return []status.Row{row}
}

// serveMetrics serves the proxy's metrics at an address, as kube-proxy does, until ctx ends. It calls listening once
// the port is open.
func serveMetrics(ctx context.Context, at netip.AddrPort, listening func()) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", at.String())
	if err != nil {
		return fmt.Errorf("%s: metrics-bind-address: %w", flagsKey, err)
	}
	listening()
	s := &http.Server{Handler: metricsHandler(legacyregistry.DefaultGatherer), ReadHeaderTimeout: headerTimeout,
		WriteTimeout: writeTimeout}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics at %s: %w", at, err)
	}
	return nil
}
