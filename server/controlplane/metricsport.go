package controlplane

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiserveroptions "k8s.io/apiserver/pkg/server/options"

	"github.com/umiak-io/umiak/internal/systemports"
	"github.com/umiak-io/umiak/internal/tlspolicy"
)

// setMetricsPort turns the component's own HTTPS port off, unless the user's flags ask for it. Health and metrics of
// all components are the API server's as well. The port has the API server's certificate, and asks the API server who
// a client is and what RBAC lets it read.
func (f *flags) setMetricsPort(user []string, kubeconfig string, files Files) {
	if !given(user, "bind-address", "secure-port") {
		f.set("secure-port", "0")
		return
	}
	f.set("authentication-kubeconfig", kubeconfig)
	f.set("authorization-kubeconfig", kubeconfig)
	f.set("tls-cert-file", files.ServingCert)
	f.set("tls-private-key-file", files.ServingKey)
	f.set("tls-min-version", "VersionTLS12")
	if !given(user, "tls-min-version") {
		f.set("tls-cipher-suites", strings.Join(tlspolicy.CipherSuites(), ","))
	}
}

// metricsPort is where a component serves its health and metrics; port 0 for nowhere. Upstream's options forget it:
// they write what they listen on over it.
type metricsPort struct {
	address, network string
	port             int
}

func newMetricsPort(o *apiserveroptions.SecureServingOptions) metricsPort {
	return metricsPort{address: o.BindAddress.String(), network: o.BindNetwork, port: o.BindPort}
}

// MetricsPorts returns the ports at which the user's flags make components serve their metrics.
func (p *ControlPlane) MetricsPorts() (out []systemports.Held) {
	add := func(m metricsPort, holder string) {
		if m.port != 0 {
			out = append(out, systemports.Held{Protocol: corev1.ProtocolTCP, Port: m.port, Holder: holder})
		}
	}
	add(p.ControllerManager.port, "kube-controller-manager")
	if p.Scheduler != nil {
		add(p.Scheduler.port, "kube-scheduler")
	}
	return out
}

// listen gives the options a listener for one run of the component, and returns the function that closes it. A port
// that is taken is logged: the component runs without it.
func (p metricsPort) listen(ctx context.Context, o *apiserveroptions.SecureServingOptions, log *slog.Logger) func() {
	o.Listener, o.BindPort = nil, 0
	if p.port == 0 {
		return func() {}
	}
	network, at := p.network, net.JoinHostPort(p.address, strconv.Itoa(p.port))
	if network == "" {
		network = "tcp"
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, network, at)
	if err != nil {
		log.Error("its port for metrics and health is not served; the API server's has the same", "address", at,
			"error", err)
		return func() {}
	}
	o.Listener = l
	return func() { _ = l.Close() } // upstream's server has closed it already where it has stopped
}
