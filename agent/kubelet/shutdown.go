package kubelet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
)

// sweepTimeout bounds how long after a start Jobs may take to count the failures of their pods.
const sweepTimeout = 5 * time.Minute

// shutdownReasons are the status reasons of pods that the kubelet ended, or refused, because the machine shuts down
// (k8s.io/kubernetes/pkg/kubelet/nodeshutdown).
var shutdownReasons = []string{"Terminated", "NodeShutdown"}

// sweeper deletes the pods of a node that ended with an earlier shutdown of the machine and whose controller has
// replaced them; upstream leaves them as Failed forever (kubernetes#122122). A pod without a controller stays: it is
// the only record of what happened. A Job's pod is deleted once the Job has counted its failure and has another pod on
// this node, so that neither the count nor the last trace of a failed Job is lost.
type sweeper struct {
	client kubernetes.Interface
	pods   map[string]*v1.Pod // of the node, by UID
	done   map[string]bool    // by UID: deleted, or the deletion failed
	errs   []error
}

// sweep deletes the pods that a shutdown ended, and returns their number.
func sweep(ctx context.Context, client kubernetes.Interface, node string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	failed, err := client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
		FieldSelector: fields.Set{"spec.nodeName": node, "status.phase": string(v1.PodFailed)}.String(),
	})
	if err != nil {
		return 0, fmt.Errorf("list failed pods of the node: %w", err)
	}
	if !slices.ContainsFunc(failed.Items, func(p v1.Pod) bool { return endedByShutdown(&p) }) {
		return 0, nil
	}
	s := &sweeper{client: client, pods: map[string]*v1.Pod{}, done: map[string]bool{}}
	here := fields.OneTermEqualSelector("spec.nodeName", node).String()
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = here
			return client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = here
			return client.CoreV1().Pods(metav1.NamespaceAll).Watch(ctx, o)
		},
	}, client)
	synced := func(store cache.Store) (bool, error) {
		for _, o := range store.List() {
			if p, ok := o.(*v1.Pod); ok {
				s.pods[string(p.UID)] = p
			}
		}
		return s.step(ctx), nil
	}
	_, err = watchtools.UntilWithSync(ctx, lw, &v1.Pod{}, synced, func(e watch.Event) (bool, error) {
		if p, ok := e.Object.(*v1.Pod); ok {
			if e.Type == watch.Deleted {
				delete(s.pods, string(p.UID))
			} else {
				s.pods[string(p.UID)] = p
			}
		}
		return s.step(ctx), nil
	})
	if ctx.Err() != nil {
		err = nil // the next start continues
	}
	return len(s.done) - len(s.errs), errors.Join(append(s.errs, err)...)
}

// step deletes the pods that can be deleted now and reports whether no others remain.
func (s *sweeper) step(ctx context.Context) bool {
	waiting := false
	for uid, p := range s.pods {
		if s.done[uid] || !endedByShutdown(p) {
			continue
		}
		if !s.replaced(p) {
			waiting = true
			continue
		}
		s.done[uid] = true
		err := s.client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name,
			metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(uid)})
		if err != nil && !apierrors.IsNotFound(err) {
			s.errs = append(s.errs, fmt.Errorf("delete pod %s/%s: %w", p.Namespace, p.Name, err))
		}
	}
	return !waiting
}

// endedByShutdown reports whether a pod with a controller ended, or was refused, because the machine was shut down.
func endedByShutdown(p *v1.Pod) bool {
	return p.Status.Phase == v1.PodFailed && slices.Contains(shutdownReasons, p.Status.Reason) &&
		p.DeletionTimestamp == nil && metav1.GetControllerOf(p) != nil
}

// replaced reports whether a pod's controller no longer needs it.
func (s *sweeper) replaced(p *v1.Pod) bool {
	owner := metav1.GetControllerOf(p)
	if owner.Kind != "Job" {
		return true
	}
	if slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) {
		return false
	}
	for _, o := range s.pods {
		if by := metav1.GetControllerOf(o); by != nil && by.UID == owner.UID && o.UID != p.UID &&
			p.CreationTimestamp.Before(&o.CreationTimestamp) {
			return true
		}
	}
	return false
}
