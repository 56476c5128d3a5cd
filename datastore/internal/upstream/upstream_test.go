package upstream

import (
	"context"
	"log/slog"
	"os"
	"strconv"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/api/apitesting"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/etcd3"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/utils/clock"

	"github.com/umiak-io/umiak/datastore"
)

type env struct {
	storage.Interface
	ctx    context.Context
	client *kubernetes.Client
}

func setup(t *testing.T, volatile bool) env {
	t.Helper()
	dir, err := os.MkdirTemp("", "umiak-") // short, for the sockets
	if err != nil {
		t.Fatal(err)
	}
	s, err := datastore.Open(t.Context(), datastore.Config{Dir: dir + "/db", Socket: dir + "/d.sock",
		VolatileSocket: dir + "/v.sock", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(ready) }) }()
	<-ready
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	endpoint := s.Endpoint()
	if volatile {
		endpoint = s.VolatileEndpoint()
	}
	client, err := kubernetes.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 10 * time.Second,
		Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	recorder := storagetesting.NewKubernetesRecorder(client.Kubernetes)
	client.KV = storagetesting.NewKVRecorder(client.KV, recorder)
	client.Kubernetes = recorder

	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	utilruntime.Must(example.AddToScheme(scheme))
	utilruntime.Must(examplev1.AddToScheme(scheme))
	codec := apitesting.TestCodec(serializer.NewCodecFactory(scheme), examplev1.SchemeGroupVersion)
	versioner := storage.APIObjectVersioner{}
	compactor := etcd3.NewCompactor(client.Client, 0, clock.RealClock{}, nil)
	t.Cleanup(compactor.Stop)
	leases := etcd3.NewDefaultLeaseManagerConfig()
	leases.ReuseDurationSeconds = 1
	store, err := etcd3.New(client, compactor, codec, func() runtime.Object { return &example.Pod{} },
		func() runtime.Object { return &example.PodList{} },
		"", "/pods/", schema.GroupResource{Resource: "pods"}, storagetesting.NewPrefixTransformer([]byte("test!"),
			false), leases, etcd3.NewDefaultDecoder(codec, versioner), versioner)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return env{store, ctx, client}
}

func (e env) compact(ctx context.Context, t *testing.T, resourceVersion string) {
	rev, err := strconv.ParseInt(resourceVersion, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := etcd3.Compact(ctx, e.client.Client, 0, rev); err != nil {
		t.Fatal(err)
	}
}

func (e env) increase(ctx context.Context, t *testing.T) int64 {
	r, err := e.client.KV.Put(ctx, "increaseRV", "ok")
	if err != nil {
		t.Fatal(err)
	}
	return r.Header.Revision
}

func TestUpstream(t *testing.T) {
	plain := func(f func(context.Context, *testing.T, storage.Interface)) func(*testing.T, env) {
		return func(t *testing.T, e env) { f(e.ctx, t, e) }
	}
	recorder := func(e env) *storagetesting.KubernetesRecorder {
		return e.client.Kubernetes.(*storagetesting.KubernetesRecorder)
	}
	for name, f := range map[string]func(*testing.T, env){
		"Create": func(t *testing.T, e env) {
			storagetesting.RunTestCreate(e.ctx, t, e, func(context.Context, *testing.T, string) {})
		},
		"CreateWithTTL":                              plain(storagetesting.RunTestCreateWithTTL),
		"CreateWithKeyExist":                         plain(storagetesting.RunTestCreateWithKeyExist),
		"Get":                                        plain(storagetesting.RunTestGet),
		"UnconditionalDelete":                        plain(storagetesting.RunTestUnconditionalDelete),
		"ConditionalDelete":                          plain(storagetesting.RunTestConditionalDelete),
		"DeleteWithSuggestion":                       plain(storagetesting.RunTestDeleteWithSuggestion),
		"DeleteWithSuggestionAndConflict":            plain(storagetesting.RunTestDeleteWithSuggestionAndConflict),
		"DeleteWithConflict":                         plain(storagetesting.RunTestDeleteWithConflict),
		"DeleteWithSuggestionOfDeletedObject":        plain(storagetesting.RunTestDeleteWithSuggestionOfDeletedObject),
		"ValidateDeletionWithSuggestion":             plain(storagetesting.RunTestValidateDeletionWithSuggestion),
		"ValidateDeletionWithOnlySuggestionValid":    plain(storagetesting.RunTestValidateDeletionWithOnlySuggestionValid),
		"PreconditionalDeleteWithSuggestion":         plain(storagetesting.RunTestPreconditionalDeleteWithSuggestion),
		"PreconditionalDeleteWithOnlySuggestionPass": plain(storagetesting.RunTestPreconditionalDeleteWithOnlySuggestionPass),
		"GetListRecursivePrefix":                     plain(storagetesting.RunTestGetListRecursivePrefix),
		"GuaranteedUpdateWithTTL":                    plain(storagetesting.RunTestGuaranteedUpdateWithTTL),
		"GuaranteedUpdateWithConflict":               plain(storagetesting.RunTestGuaranteedUpdateWithConflict),
		"GuaranteedUpdateWithSuggestionAndConflict":  plain(storagetesting.RunTestGuaranteedUpdateWithSuggestionAndConflict),
		"ListPaging":                                 plain(storagetesting.RunTestListPaging),
		"NamespaceScopedList":                        plain(storagetesting.RunTestNamespaceScopedList),
		"KeySchema":                                  plain(storagetesting.RunTestKeySchema),
		"Watch":                                      plain(storagetesting.RunTestWatch),
		"DeleteTriggerWatch":                         plain(storagetesting.RunTestDeleteTriggerWatch),
		"WatchFromNonZero":                           plain(storagetesting.RunTestWatchFromNonZero),
		"DelayedWatchDelivery":                       plain(storagetesting.RunTestDelayedWatchDelivery),
		"WatchContextCancel":                         plain(storagetesting.RunTestWatchContextCancel),
		"WatcherTimeout":                             plain(storagetesting.RunTestWatcherTimeout),
		"WatchDeleteEventObjectHaveLatestRV":         plain(storagetesting.RunTestWatchDeleteEventObjectHaveLatestRV),
		"WatchInitializationSignal":                  plain(storagetesting.RunTestWatchInitializationSignal),
		"ClusterScopedWatch":                         plain(storagetesting.RunTestClusterScopedWatch),
		"NamespaceScopedWatch":                       plain(storagetesting.RunTestNamespaceScopedWatch),
		"WatchFromZero": func(t *testing.T, e env) {
			storagetesting.RunTestWatchFromZero(e.ctx, t, e, e.compact)
		},
		"List": func(t *testing.T, e env) {
			storagetesting.RunTestList(e.ctx, t, e, e.compact, false, recorder(e))
		},
		"ConsistentList": func(t *testing.T, e env) {
			storagetesting.RunTestConsistentList(e.ctx, t, e, e.increase, false, true, false)
		},
		"GetListNonRecursive": func(t *testing.T, e env) {
			storagetesting.RunTestGetListNonRecursive(e.ctx, t, e.increase, e)
		},
		"ListInconsistentContinuation": func(t *testing.T, e env) {
			storagetesting.RunTestListInconsistentContinuation(e.ctx, t, e, e.compact)
		},
		"ListContinuation": func(t *testing.T, e env) {
			storagetesting.RunTestListContinuation(e.ctx, t, e, func(*testing.T, uint64, uint64) {})
		},
		"ListPaginationRareObject": func(t *testing.T, e env) {
			storagetesting.RunTestListPaginationRareObject(e.ctx, t, e, func(*testing.T, uint64, uint64) {})
		},
		"ListContinuationWithFilter": func(t *testing.T, e env) {
			storagetesting.RunTestListContinuationWithFilter(e.ctx, t, e, func(*testing.T, uint64, uint64) {})
		},
	} {
		for tier, volatile := range map[string]bool{"durable": false, "volatile": true} {
			t.Run(name+"/"+tier, func(t *testing.T) {
				if volatile && strconv.IntSize == 32 {
					t.Skip("upstream's tests read revisions into an int, and those in memory begin at 2^36")
				}
				f(t, setup(t, volatile))
			})
		}
	}
}
