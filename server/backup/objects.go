package backup

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/umiak-io/umiak/server/backup/s3"
)

// KubeSystem reads Secrets and ConfigMaps of the namespace kube-system. Client makes a client for one of them.
type KubeSystem struct {
	Client func() (kubernetes.Interface, error)
}

var _ s3.Objects = KubeSystem{}

const readTimeout = 10 * time.Second // of one object

// Secret implements s3.Objects.
func (k KubeSystem) Secret(ctx context.Context, name string) (map[string][]byte, error) {
	client, err := k.Client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	s, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read it: %w", err)
	}
	return s.Data, nil
}

// ConfigMap implements s3.Objects.
func (k KubeSystem) ConfigMap(ctx context.Context, name string) (map[string]string, error) {
	client, err := k.Client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	m, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read it: %w", err)
	}
	return m.Data, nil
}
