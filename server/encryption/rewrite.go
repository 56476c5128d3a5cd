package encryption

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// writers bounds the objects that are written at once: the datastore commits them together.
const writers = 8

// rewrite makes the API server write every object of a resource as it is. The API server encrypts it with the present
// key then, and does nothing where it is so already. An object that somebody else has changed or deleted meanwhile
// needs no more writing.
func (r run) rewrite(ctx context.Context, objects dynamic.Interface, name string) error {
	resource, group, _ := strings.Cut(name, ".")
	client := objects.Resource(schema.GroupVersionResource{Group: group, Version: "v1", Resource: resource})
	var done atomic.Int64
	opts := metav1.ListOptions{Limit: page}
	for {
		list, err := client.List(ctx, opts)
		if apierrors.IsResourceExpired(err) {
			opts.Continue = "" // took too long: begin again, which costs only requests
			continue
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", name, err)
		}
		g, writing := errgroup.WithContext(ctx)
		g.SetLimit(writers)
		for i := range list.Items {
			o := &list.Items[i]
			g.Go(func() error {
				if err := update(writing, client, o); err != nil {
					return fmt.Errorf("rewrite %s %s/%s: %w", name, o.GetNamespace(), o.GetName(), err)
				}
				done.Add(1)
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		left := int64(0)
		if n := list.GetRemainingItemCount(); n != nil {
			left = *n
		}
		if err := r.publish(ctx, "%s: %d of %d rewritten", name, done.Load(), done.Load()+left); err != nil {
			return err
		}
		if opts.Continue = list.GetContinue(); opts.Continue == "" {
			return nil
		}
	}
}

// update writes an object as it is.
func update(ctx context.Context, r dynamic.NamespaceableResourceInterface, o *unstructured.Unstructured) error {
	var i dynamic.ResourceInterface = r
	if ns := o.GetNamespace(); ns != "" {
		i = r.Namespace(ns)
	}
	_, err := i.Update(ctx, o, metav1.UpdateOptions{FieldManager: "umiak-secrets-encrypt"})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
