package encryption

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"

	"github.com/umiak-io/umiak/internal/retry"
)

// writers bounds the objects that are written at once: the datastore commits them together.
const writers = 8

// rewrite makes the API server write every object of a resource as it is. The API server encrypts it with the present
// key then, and does nothing where it is so already. An object that somebody else has changed or deleted meanwhile
// needs no more writing. Contents never come here: a tenant chooses how large they are, and a text that is within the
// API's limit in protobuf can be beyond it in JSON.
func (r run) rewrite(ctx context.Context, objects metadata.Interface, name string) error {
	resource, group, _ := strings.Cut(name, ".")
	client := objects.Resource(schema.GroupVersionResource{Group: group, Version: "v1", Resource: resource})
	var done atomic.Int64
	opts := metav1.ListOptions{Limit: page}
	for {
		list, err := client.List(ctx, opts)
		if apierrors.IsResourceExpired(err) {
			opts.Continue = "" // took too long: begin again, which costs only requests
			done.Store(0)
			if err := retry.Sleep(ctx, time.Second); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", name, err)
		}
		g, writing := errgroup.WithContext(ctx)
		g.SetLimit(writers)
		for i := range list.Items {
			o := &list.Items[i].ObjectMeta
			g.Go(func() error {
				if err := touch(writing, client, o); err != nil {
					return fmt.Errorf("rewrite %s %s/%s: %w", name, o.Namespace, o.Name, err)
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

// touch makes the API server write an object as it is, with a patch that changes nothing of this very object.
func touch(ctx context.Context, r metadata.Getter, o *metav1.ObjectMeta) error {
	var i metadata.ResourceInterface = r
	if o.Namespace != "" {
		i = r.Namespace(o.Namespace)
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": o.UID, "resourceVersion": o.ResourceVersion}})
	if err != nil {
		return fmt.Errorf("encode patch: %w", err)
	}
	_, err = i.Patch(ctx, o.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "umiak-secrets-encrypt"})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
