package controlplane

import (
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/storage"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	discoveryclient "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/controlplane/reconcilers"
)

// soleServer reconciles the endpoint of the Service kubernetes with the address of the only server. Unlike upstream's
// reconcilers it leaves the endpoint in place while the server is down: no other server could answer, and removing and
// restoring it costs four durable writes and a change on every node at each restart. It uses the present address, since
// a machine may start without one.
type soleServer struct {
	reconcilers.EndpointReconciler
	address  func() string
	log      *slog.Logger
	stopping atomic.Bool

	mu   sync.Mutex
	last *call
}

// call holds the arguments of upstream's last call.
type call struct {
	name      string
	ports     []corev1.EndpointPort
	reconcile bool
}

func newSoleServer(c *rest.Config, address func() string, log *slog.Logger) (*soleServer, error) {
	core, err := corev1client.NewForConfig(c)
	if err != nil {
		return nil, err
	}
	discovery, err := discoveryclient.NewForConfig(c)
	if err != nil {
		return nil, err
	}
	return &soleServer{EndpointReconciler: reconcilers.NewMasterCountEndpointReconciler(1,
		reconcilers.NewEndpointsAdapter(core, discovery)), address: address, log: log}, nil
}

// ReconcileEndpoints publishes the server's address, none while there is none.
func (r *soleServer) ReconcileEndpoints(name string, _ net.IP, ports []corev1.EndpointPort, reconcilePorts bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = &call{name, ports, reconcilePorts}
	return r.reconcile()
}

// reconcile is to be called with the lock held.
func (r *soleServer) reconcile() error {
	ip := net.ParseIP(r.address())
	if ip == nil || r.last == nil {
		return nil
	}
	return r.EndpointReconciler.ReconcileEndpoints(r.last.name, ip, r.last.ports, r.last.reconcile)
}

// publish does so now, and not only when upstream asks the next time.
func (r *soleServer) publish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.reconcile(); err != nil {
		r.log.Warn("cannot publish the API server's address yet, it is tried again within a minute", "error", err)
	}
}

// RemoveEndpoints implements reconcilers.EndpointReconciler. It is called at start, where it reports that there is no
// endpoint, and after StopReconciling, where it does nothing.
func (r *soleServer) RemoveEndpoints(name string, _ net.IP, _ []corev1.EndpointPort) error {
	if r.stopping.Load() {
		return nil
	}
	return storage.NewKeyNotFoundError(name, 0)
}

// StopReconciling is the first step of a stop.
func (r *soleServer) StopReconciling() {
	r.stopping.Store(true)
	r.EndpointReconciler.StopReconciling()
}

// advertisedPort publishes another port than the one at which the API server listens.
type advertisedPort struct {
	reconcilers.EndpointReconciler
	port int32
}

// ReconcileEndpoints publishes the server's address with the advertised port.
func (r advertisedPort) ReconcileEndpoints(name string, ip net.IP, ports []corev1.EndpointPort,
	reconcilePorts bool) error {
	return r.EndpointReconciler.ReconcileEndpoints(name, ip, r.advertised(ports), reconcilePorts)
}

// RemoveEndpoints removes the server's address, which was published with the advertised port.
func (r advertisedPort) RemoveEndpoints(name string, ip net.IP, ports []corev1.EndpointPort) error {
	return r.EndpointReconciler.RemoveEndpoints(name, ip, r.advertised(ports))
}

func (r advertisedPort) advertised(ports []corev1.EndpointPort) []corev1.EndpointPort {
	out := slices.Clone(ports)
	for i := range out {
		out[i].Port = r.port
	}
	return out
}
