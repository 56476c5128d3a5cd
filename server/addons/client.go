package addons

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// manager is umiak's field manager name in managedFields.
const manager = "umiak-addons"

// errNoKind means that the API server does not serve the kind, not yet or no longer.
var errNoKind = errors.New("the API server does not know this kind (is its CustomResourceDefinition there?)")

// resource is a kind's name in URLs.
type resource struct {
	schema.GroupVersionResource
	Namespaced bool
}

// client accesses objects of any kind in the API server. It requests the resource names of an API group version on
// first use, instead of keeping the whole cluster's discovery in memory.
type client struct {
	rest rest.Interface

	mu    sync.Mutex
	kinds map[schema.GroupVersion]map[string]resource
}

func newClient(cfg *rest.Config) (*client, error) {
	c := rest.CopyConfig(cfg)
	c.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	c.ContentType, c.AcceptContentTypes = "application/json", "application/json"
	r, err := rest.UnversionedRESTClientFor(c)
	if err != nil {
		return nil, err
	}
	return &client{rest: r, kinds: map[schema.GroupVersion]map[string]resource{}}, nil
}

func groupPath(gv schema.GroupVersion) string {
	if gv.Group == "" {
		return "/api/" + gv.Version
	}
	return "/apis/" + gv.Group + "/" + gv.Version
}

// resourceOf returns a kind's resource. fresh repeats the request even if the group is cached: a
// CustomResourceDefinition may have been added.
func (c *client) resourceOf(ctx context.Context, gvk schema.GroupVersionKind, fresh bool) (resource, error) {
	c.mu.Lock()
	r, ok := c.kinds[gvk.GroupVersion()][gvk.Kind]
	c.mu.Unlock()
	if ok && !fresh {
		return r, nil
	}
	b, err := c.rest.Get().AbsPath(groupPath(gvk.GroupVersion())).Do(ctx).Raw()
	if apierrors.IsNotFound(err) {
		err = errNoKind
	}
	if err != nil {
		return resource{}, fmt.Errorf("%s: %w", gvk.GroupVersion(), err)
	}
	var list meta.APIResourceList
	if err := json.Unmarshal(b, &list); err != nil {
		return resource{}, fmt.Errorf("read resources of %s: %w", gvk.GroupVersion(), err)
	}
	kinds := map[string]resource{}
	for _, a := range list.APIResources {
		if _, have := kinds[a.Kind]; have || len(a.Verbs) == 0 || containsSlash(a.Name) {
			continue // a subresource
		}
		kinds[a.Kind] = resource{gvk.GroupVersion().WithResource(a.Name), a.Namespaced}
	}
	c.mu.Lock()
	c.kinds[gvk.GroupVersion()] = kinds
	c.mu.Unlock()
	if r, ok = kinds[gvk.Kind]; !ok {
		return resource{}, fmt.Errorf("%s %s: %w", gvk.GroupVersion(), gvk.Kind, errNoKind)
	}
	return r, nil
}

// served returns the resource of a recorded kind in a version that the API server serves now.
func (c *client) served(ctx context.Context, gvk schema.GroupVersionKind) (resource, error) {
	r, err := c.resourceOf(ctx, gvk, false)
	if err == nil || !errors.Is(err, errNoKind) || gvk.Group == "" {
		return r, err
	}
	b, errGroup := c.rest.Get().AbsPath("/apis/" + gvk.Group).Do(ctx).Raw()
	if apierrors.IsNotFound(errGroup) {
		return r, err
	}
	var g meta.APIGroup
	if errGroup == nil {
		errGroup = json.Unmarshal(b, &g)
	}
	if errGroup != nil {
		return r, fmt.Errorf("read API group %s: %w", gvk.Group, errGroup)
	}
	for _, v := range g.Versions {
		if r, err := c.resourceOf(ctx, schema.GroupVersionKind{Group: gvk.Group, Version: v.Version, Kind: gvk.Kind},
			true); err == nil || !errors.Is(err, errNoKind) {
			return r, err
		}
	}
	return r, err
}

func containsSlash(s string) bool {
	for i := range len(s) {
		if s[i] == '/' {
			return true
		}
	}
	return false
}

func (r resource) path(namespace, name string) string {
	p := groupPath(r.GroupVersion())
	if r.Namespaced {
		p += "/namespaces/" + url.PathEscape(namespace)
	}
	if p += "/" + r.Resource; name == "" {
		return p
	}
	return p + "/" + url.PathEscape(name)
}

const asMetadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"

// get returns an object's metadata, nil if it does not exist.
func (c *client) get(ctx context.Context, r resource, namespace, name string) (*meta.PartialObjectMetadata, error) {
	m, err := decodeMetadata(c.rest.Get().AbsPath(r.path(namespace, name)).SetHeader("Accept", asMetadata).Do(ctx))
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return m, err
}

// apply server-side-applies an object and returns its metadata.
func (c *client) apply(ctx context.Context, r resource,
	o *unstructured.Unstructured) (*meta.PartialObjectMetadata, error) {
	body, err := o.MarshalJSON()
	if err != nil {
		return nil, err
	}
	return decodeMetadata(c.rest.Patch(types.ApplyYAMLPatchType).AbsPath(r.path(o.GetNamespace(), o.GetName())).
		Param("fieldManager", manager).Param("force", "true").Param("fieldValidation", "Strict").
		SetHeader("Accept", asMetadata).Body(body).Do(ctx))
}

// create creates an object that must not exist.
func (c *client) create(ctx context.Context, r resource,
	o *unstructured.Unstructured) (*meta.PartialObjectMetadata, error) {
	body, err := o.MarshalJSON()
	if err != nil {
		return nil, err
	}
	return decodeMetadata(c.rest.Post().AbsPath(r.path(o.GetNamespace(), "")).Param("fieldManager", manager).
		SetHeader("Accept", asMetadata).SetHeader("Content-Type", "application/json").Body(body).Do(ctx))
}

// release removes umiak's labels from an object that existed before.
func (c *client) release(ctx context.Context, r resource, namespace, name string, uid types.UID) error {
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": uid,
		"labels": map[string]any{labelManifest: nil, labelPartOf: nil}}})
	if err != nil {
		return err
	}
	err = c.rest.Patch(types.MergePatchType).AbsPath(r.path(namespace, name)).Param("fieldManager", manager).
		SetHeader("Accept", asMetadata).Body(body).Do(ctx).Error()
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// remove deletes an object if its UID is uid.
func (c *client) remove(ctx context.Context, r resource, namespace, name string, uid types.UID) error {
	background := meta.DeletePropagationBackground
	body, err := json.Marshal(meta.DeleteOptions{
		TypeMeta:          meta.TypeMeta{APIVersion: "v1", Kind: "DeleteOptions"},
		PropagationPolicy: &background, Preconditions: &meta.Preconditions{UID: &uid},
	})
	if err != nil {
		return err
	}
	err = c.rest.Delete().AbsPath(r.path(namespace, name)).
		SetHeader("Content-Type", "application/json").Body(body).Do(ctx).Error()
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func decodeMetadata(res rest.Result) (*meta.PartialObjectMetadata, error) {
	var code int
	res = res.StatusCode(&code)
	if err := res.Error(); err != nil {
		return nil, err
	}
	b, err := res.Raw()
	if err != nil {
		return nil, err
	}
	var m meta.PartialObjectMetadata
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("read answer (%s): %w", http.StatusText(code), err)
	}
	return &m, nil
}

// ownedFields returns a hash of the set of fields that umiak manages, "" if it manages none. Whoever changes or removes
// a field takes it out of that set, so the hash changes exactly when such a field was changed; values need not be
// compared or stored.
func ownedFields(o meta.Object) string {
	for _, e := range o.GetManagedFields() {
		if e.Manager == manager && e.Operation == meta.ManagedFieldsOperationApply && e.Subresource == "" &&
			e.FieldsV1 != nil {
			return hash([]byte(e.APIVersion), e.FieldsV1.GetRawBytes())
		}
	}
	return ""
}

func hash(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
