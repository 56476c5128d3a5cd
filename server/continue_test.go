package server_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
)

// tokensEnd has the datastore compacted as the API server would, and sees that a list that was begun before cannot be
// gone on with: the API server's cache must not answer from what the datastore has given up. The token that comes
// with the refusal goes on from the last key, at the revision of now.
func tokensEnd(t *testing.T, k kubernetes.Interface, endpoint string) {
	const namespace, all = "default", 5
	maps := k.CoreV1().ConfigMaps(namespace)
	for i := range all {
		if _, err := maps.Create(t.Context(),
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("page-", i)}},
			metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	first, err := maps.List(t.Context(), metav1.ListOptions{Limit: 1})
	if err != nil || first.Continue == "" {
		t.Fatalf("the first page: %v", err)
	}
	next := metav1.ListOptions{Limit: 1, Continue: first.Continue}
	if _, err := maps.List(t.Context(), next); err != nil {
		t.Errorf("the next page, before: %v", err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 10 * time.Second,
		Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	compactor := etcd3.NewCompactor(client, 100*time.Millisecond, clock.RealClock{}, nil)
	defer compactor.Stop()
	written := 0
	var refused error
	eventually(t, "the continue token is refused", func(ctx context.Context) error {
		// Compacted is what was there one turn before.
		if _, err := maps.Patch(ctx, "page-0", "application/merge-patch+json",
			fmt.Appendf(nil, `{"data":{"n":"%d"}}`, written), metav1.PatchOptions{}); err != nil {
			return err
		}
		written++
		if _, refused = maps.List(ctx, next); apierrors.IsResourceExpired(refused) {
			return nil
		}
		return fmt.Errorf("it is answered with %w", errors.Join(refused, errors.New("what there was")))
	})
	status := apierrors.APIStatus(nil)
	if !errors.As(refused, &status) || status.Status().Code != 410 || status.Status().ListMeta.Continue == "" {
		t.Fatalf("refused with %v", refused)
	}
	next.Continue = status.Status().ListMeta.Continue
	if _, err := maps.List(t.Context(), next); err != nil {
		t.Errorf("with the token of the refusal: %v", err)
	}
}
