package controlplane

import (
	"net"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/storage"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	discoveryclient "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/controlplane"
	"k8s.io/kubernetes/pkg/controlplane/reconcilers"
)

// soleServer keeps the endpoint of the kubernetes Service as the one server's address. Unlike upstream's
// reconcilers it leaves it there while the server is down: nobody else could answer, and taking it away
// and putting it back costs four durable writes and a change on every node at each restart.
type soleServer struct {
	reconcilers.EndpointReconciler
	stopping atomic.Bool
}

func newSoleServer(c *rest.Config) (controlplane.EndpointReconcilerConfig, error) {
	core, err := corev1client.NewForConfig(c)
	if err != nil {
		return controlplane.EndpointReconcilerConfig{}, err
	}
	discovery, err := discoveryclient.NewForConfig(c)
	if err != nil {
		return controlplane.EndpointReconcilerConfig{}, err
	}
	return controlplane.EndpointReconcilerConfig{
		Reconciler: &soleServer{EndpointReconciler: reconcilers.NewMasterCountEndpointReconciler(1, reconcilers.NewEndpointsAdapter(core, discovery))},
		Interval:   time.Minute, // against somebody who deletes it
	}, nil
}

// RemoveEndpoints is called at start, where nothing found is what upstream wants to hear, and after
// StopReconciling, where it is nothing done.
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
