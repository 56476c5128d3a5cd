package kubelet

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"time"
	"unsafe"

	upstream "k8s.io/kubernetes/pkg/kubelet"
	"k8s.io/kubernetes/pkg/kubelet/images/pullmanager"

	"github.com/umiak-io/umiak/agent/kubelet/pullrecords"
	"github.com/umiak-io/umiak/internal/retry"
)

// Images gives access to the node's images.
type Images interface {
	// All lists the images.
	All(ctx context.Context) ([]pullrecords.Image, error)
	// Follow calls changed once at the beginning, and after images have gained or lost names, until ctx ends.
	Follow(ctx context.Context, changed func(ctx context.Context) error) error
}

// prepareRecords corrects the kubelet's pull records before the kubelet reads them.
func (k *Kubelet) prepareRecords(ctx context.Context) (*pullrecords.Records, error) {
	records, err := pullrecords.Open(ctx, k.server.RootDirectory)
	if err != nil {
		return nil, err
	}
	all, err := k.cfg.Images.All(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	if err := records.Prepare(ctx, all); err != nil {
		k.cfg.Log.Warn(
			"cannot correct all pull records: pods may be refused imported images that the kubelet was pulling when it ended", "error", err)
	}
	return records, nil
}

// followImports grants the running kubelet's pods access to images that are imported, until ctx ends.
func (k *Kubelet) followImports(ctx context.Context, records *pullrecords.Records, inner *upstream.Kubelet) {
	pulls, err := pullManager(inner)
	if err != nil {
		k.cfg.Log.Error(
			"cannot update the kubelet's pull records: an image that is imported while the kubelet pulls it is usable only after the next start", "error", err)
		return
	}
	grant := func(ctx context.Context, match func(pullrecords.Image) bool) error {
		all, err := k.cfg.Images.All(ctx)
		for _, img := range all {
			if match(img) {
				records.Grant(ctx, pulls, img)
			}
		}
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		k.forever(ctx, "following the kubelet's pulls of imported images", func() error {
			return records.WatchPulls(ctx, func(ctx context.Context, names []string) {
				if err := grant(ctx, func(i pullrecords.Image) bool { return i.Named(names) }); err != nil &&
					ctx.Err() == nil {
					k.cfg.Log.Warn(
						"cannot update the pull records: pods may be refused imported images while they are being pulled", "images", names, "error", err)
				}
			})
		})
	})
	k.forever(ctx, "following imported images", func() error {
		return k.cfg.Images.Follow(ctx, func(ctx context.Context) error {
			return grant(ctx, func(pullrecords.Image) bool { return true })
		})
	})
}

// forever calls follow until ctx ends, with back-off when it returns, for example while containerd restarts.
func (k *Kubelet) forever(ctx context.Context, what string, follow func() error) {
	ended := func(err error, pause time.Duration) {
		k.cfg.Log.Warn(what+" ended, starting again", "in", pause, "error", err)
	}
	retry.Forever(ctx, retry.Backoff{}, time.Minute, ended, func(context.Context) error { return follow() })
}

// pullManager returns the kubelet's manager of pull records, which upstream does not export:
// kubelet.Kubelet.containerRuntime, there kuberuntime.kubeGenericRuntimeManager.imagePuller, there
// images.imageManager.imagePullManager. The fields are read after the kubelet has been created, and never written. If
// upstream moves them, this returns an error; tests of this package and e2e detect that.
func pullManager(k *upstream.Kubelet) (_ pullmanager.ImagePullManager, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("find the kubelet's pull records: %v", r)
		}
	}()
	v := reflect.ValueOf(k)
	for _, name := range pullManagerPath {
		for v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		v = v.FieldByName(name)
	}
	// The field is unexported: read it through its address.
	m, ok := reflect.NewAt(v.Type(), unsafe.Pointer(v.UnsafeAddr())).Elem().Interface().(pullmanager.ImagePullManager) //nolint:gosec // see above
	if !ok || m == nil {
		return nil, fmt.Errorf("find the kubelet's pull records: it is a %s", v.Type())
	}
	return m, nil
}

var pullManagerPath = []string{"containerRuntime", "imagePuller", "imagePullManager"}
