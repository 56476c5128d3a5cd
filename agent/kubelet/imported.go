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

// Images knows the images of the node.
type Images interface {
	// All lists the images.
	All(ctx context.Context) ([]pullrecords.Image, error)
	// Follow calls changed once at the beginning, and whenever an image has got or lost a name, until ctx ends.
	Follow(ctx context.Context, changed func(ctx context.Context) error) error
}

// prepareRecords corrects the kubelet's records of pulls before it reads them.
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
		k.cfg.Log.Warn("pods may not be let use imported images that the kubelet was pulling when it ended", "error", err)
	}
	return records, nil
}

// followImports tells the running kubelet about images that are imported, until ctx ends.
func (k *Kubelet) followImports(ctx context.Context, records *pullrecords.Records, inner *upstream.Kubelet) {
	pulls, err := pullManager(inner)
	if err != nil {
		k.cfg.Log.Error("an image that is imported while the kubelet pulls it can be used only after the next start", "error", err)
		return
	}
	grant := func(ctx context.Context, those func(pullrecords.Image) bool) error {
		all, err := k.cfg.Images.All(ctx)
		for _, img := range all {
			if those(img) {
				records.Grant(ctx, pulls, img)
			}
		}
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		k.again(ctx, "following the kubelet's pulls of imported images", func() error {
			return records.WatchPulls(ctx, func(ctx context.Context, names []string) {
				if err := grant(ctx, func(i pullrecords.Image) bool { return i.Named(names) }); err != nil && ctx.Err() == nil {
					k.cfg.Log.Warn("while an image is pulled, pods may not be let use what was imported", "images", names, "error", err)
				}
			})
		})
	})
	k.again(ctx, "following imported images", func() error {
		return k.cfg.Images.Follow(ctx, func(ctx context.Context) error {
			return grant(ctx, func(pullrecords.Image) bool { return true })
		})
	})
}

// again calls follow until ctx ends, and once more with back-off whenever it returns, as while containerd restarts.
func (k *Kubelet) again(ctx context.Context, what string, follow func() error) {
	ended := func(err error, pause time.Duration) {
		k.cfg.Log.Warn(what+" ended, starting again", "in", pause, "error", err)
	}
	retry.Forever(ctx, retry.Backoff{}, time.Minute, ended, func(context.Context) error { return follow() })
}

// pullManager finds the kubelet's recorder of pulls, which no function returns: kubelet.Kubelet.containerRuntime, there
// kuberuntime.kubeGenericRuntimeManager.imagePuller, there images.imageManager.imagePullManager. It is read only after the kubelet has
// been made, and never written. Should upstream move it, this returns an error, which the tests of this package and e2e show.
func pullManager(k *upstream.Kubelet) (_ pullmanager.ImagePullManager, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("find the kubelet's record of pulls: %v", r)
		}
	}()
	v := reflect.ValueOf(k)
	for _, name := range pullManagerPath {
		for v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		v = v.FieldByName(name)
	}
	// Readable as it is only for the package that it belongs to.
	m, ok := reflect.NewAt(v.Type(), unsafe.Pointer(v.UnsafeAddr())).Elem().Interface().(pullmanager.ImagePullManager) //nolint:gosec // see above
	if !ok || m == nil {
		return nil, fmt.Errorf("find the kubelet's record of pulls: it is a %s", v.Type())
	}
	return m, nil
}

var pullManagerPath = []string{"containerRuntime", "imagePuller", "imagePullManager"}
