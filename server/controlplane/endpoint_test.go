package controlplane

import (
	"net"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/controlplane/reconcilers"
)

// written is a reconciler that remembers the ports that it was given.
type written struct {
	reconcilers.EndpointReconciler
	ports []int32
}

func (w *written) ReconcileEndpoints(_ string, _ net.IP, ports []corev1.EndpointPort, _ bool) error {
	w.ports = append(w.ports, ports[0].Port)
	return nil
}

func (w *written) RemoveEndpoints(_ string, _ net.IP, ports []corev1.EndpointPort) error {
	w.ports = append(w.ports, ports[0].Port)
	return nil
}

func TestAdvertisedPort(t *testing.T) {
	w := &written{}
	r := advertisedPort{w, 443}
	listening := []corev1.EndpointPort{{Name: "https", Port: 6443}}
	if err := r.ReconcileEndpoints("kubernetes", nil, listening, true); err != nil {
		t.Fatal(err)
	}
	if err := r.RemoveEndpoints("kubernetes", nil, listening); err != nil {
		t.Fatal(err)
	}
	if len(w.ports) != 2 || w.ports[0] != 443 || w.ports[1] != 443 || listening[0].Port != 6443 {
		t.Error(w.ports, listening)
	}
}
