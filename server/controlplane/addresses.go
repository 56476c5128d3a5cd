package controlplane

import (
	"context"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// awaitAddresses delays /readyz until Services get addresses. The API server answers before its allocator has read the
// ServiceCIDRs, and refuses Services in between as if the range were full. awaitAddresses creates a Service as a dry
// run, and gives up after a while: a range may really be full, and webhooks may refuse the Service.
func awaitAddresses(ctx context.Context, c *rest.Config) error {
	client, err := clientFor(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	probe := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "umiak-probe", Namespace: metav1.NamespaceSystem},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 1}}},
	}
	_ = retryStart(ctx, func() error {
		_, err := client.CoreV1().Services(probe.Namespace).Create(ctx, probe,
			metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		early := apierrors.IsNotFound(err) || // the namespace is made by another hook
			apierrors.IsInternalError(err) && strings.Contains(err.Error(), "failed to allocate a serviceIP")
		if !early {
			return nil
		}
		return err
	})
	return nil
}
