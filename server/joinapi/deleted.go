package joinapi

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"

	"github.com/umiak-io/umiak/internal/retry"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// followNodes removes the records of a node when the Node is deleted: its name, which another machine may have then,
// while the renewal of the deleted machine is refused with that reason; and a server's membership.
func (a *API) followNodes(ctx context.Context, meta metadata.Interface, s *serving) {
	inf := metadatainformer.NewFilteredMetadataInformer(meta, corev1.SchemeGroupVersion.WithResource("nodes"),
		metav1.NamespaceAll, 0, cache.Indexers{}, nil).Informer()
	there := func(name string) bool {
		_, ok, err := inf.GetStore().GetByKey(name)
		return ok || err != nil
	}
	_, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(o any) {
		name, err := cache.DeletionHandlingMetaNamespaceKeyFunc(o)
		if err != nil {
			return
		}
		a.free(ctx, s, name)
		if wasServer(o) {
			go a.dismiss(ctx, name, there)
		}
	}})
	if err != nil {
		a.cfg.Log.Warn("names of deleted nodes stay taken", "error", err)
		return
	}
	go func() {
		// Nodes that were deleted while no server ran.
		if !cache.WaitForCacheSync(ctx.Done(), inf.HasSynced) {
			return
		}
		a.claims.follow(there)
		all, err := s.known.secrets.List(labels.SelectorFromSet(labels.Set{Label: labelNode}))
		if err != nil {
			return
		}
		for _, secret := range all {
			if name, ok := nodeOf(secret); ok && !there(name) && a.abandoned(secret) {
				a.free(ctx, s, name)
			}
		}
	}()
	inf.RunWithContext(ctx)
}

// wasServer reports whether a Node that was deleted was a server's: no kubelet may give its Node this label.
func wasServer(o any) bool {
	if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = d.Obj
	}
	m, err := apimeta.Accessor(o)
	if err != nil {
		return false
	}
	_, server := m.GetLabels()[wellknown.ServerRole]
	return server
}

func (a *API) free(ctx context.Context, s *serving, name string) {
	secret := s.known.node(name)
	if secret == nil {
		return
	}
	err := s.tokens.secrets().Delete(ctx, secret.Name,
		metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &secret.UID}})
	switch {
	case err == nil:
		a.cfg.Log.Info("a node was deleted, its name is free", "node", name)
	case !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil:
		a.cfg.Log.Warn("cannot free the name of a deleted node", "node", name, "error", err)
	}
}

// dismiss tries until it is done, or the node is there again.
func (a *API) dismiss(ctx context.Context, name string, there func(string) bool) {
	failed := func(err error, pause time.Duration) {
		a.cfg.Log.Warn("cannot remove a deleted server from the cluster yet, trying again", "server", name, "in", pause,
			"error", err)
	}
	tried := false
	_ = retry.Do(ctx, retry.Backoff{}, failed, func(ctx context.Context) error {
		if tried && there(name) {
			return nil
		}
		tried = true
		return a.cfg.Servers.Dismiss(ctx, name)
	}) // it fails only when ctx ends
}

// registerTimeout bounds the time from joining until the Node exists.
const registerTimeout = time.Hour
