// Package manifest reads files of Kubernetes objects: it lists the files of a folder, decodes them, and sorts their
// objects into the order of application. It does not access a cluster; server/addons, its caller, does.
package manifest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Bounds of one file. The API server accepts objects of at most 1.5 MiB (3 MiB per request).
const (
	MaxBytes   = 16 << 20
	MaxObjects = 5000
	maxDepth   = 4 // of lists in lists
)

// Key identifies an object independent of its API version. An empty namespace and "default" give the same Key: only the
// API server knows which kinds have namespaces.
type Key struct {
	Group, Kind, Namespace, Name string
}

// KeyOf returns the object's key.
func KeyOf(gk schema.GroupKind, namespace, name string) Key {
	if namespace == "" {
		namespace = "default"
	}
	return Key{gk.Group, gk.Kind, namespace, name}
}

func (k Key) String() string {
	gk := schema.GroupKind{Group: k.Group, Kind: k.Kind}
	if k.Namespace == "default" {
		return gk.String() + " " + k.Name
	}
	return gk.String() + " " + k.Namespace + "/" + k.Name
}

// Decode returns the objects of a file, which is JSON or YAML with one or more documents, with lists unpacked, in the
// order of application. It reports all errors at once and then returns no object, because applying half a file would
// look like a file from which the rest was removed.
func Decode(data []byte) ([]*unstructured.Unstructured, error) {
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("larger than %d MiB", MaxBytes>>20)
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if !utf8.Valid(data) {
		return nil, errors.New("not UTF-8 text")
	}
	var out []*unstructured.Unstructured
	var errs []error
	r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for n := 1; ; n++ {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		objs, err := document(doc)
		if err != nil {
			errs = append(errs, fmt.Errorf("document %d: %w", n, err))
			if len(errs) == 20 {
				break
			}
			continue
		}
		if out = append(out, objs...); len(out) > MaxObjects {
			return nil, fmt.Errorf("more than %d objects", MaxObjects)
		}
	}
	seen := map[Key]bool{}
	for _, o := range out {
		k := KeyOf(o.GroupVersionKind().GroupKind(), o.GetNamespace(), o.GetName())
		if seen[k] {
			errs = append(errs, fmt.Errorf("%s is in the file twice", k))
		}
		seen[k] = true
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	slices.SortStableFunc(out, func(a, b *unstructured.Unstructured) int { return rank(a) - rank(b) })
	return out, nil
}

func document(doc []byte) ([]*unstructured.Unstructured, error) {
	j, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return nil, err
	}
	var v any
	if err := json.Unmarshal(j, &v); err != nil {
		return nil, err
	}
	return unpack(v, 0)
}

func unpack(v any, depth int) ([]*unstructured.Unstructured, error) {
	if v == nil {
		return nil, nil // comments only
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("not an object")
	}
	apiVersion, _ := m["apiVersion"].(string)
	kind, _ := m["kind"].(string)
	if items, ok := m["items"].([]any); ok && strings.HasSuffix(kind, "List") {
		if depth == maxDepth {
			return nil, fmt.Errorf("lists nested more than %d deep", depth)
		}
		var out []*unstructured.Unstructured
		for i, item := range items {
			if im, ok := item.(map[string]any); ok && kind != "List" {
				// The items of a typed list may omit kind and apiVersion.
				if im["kind"] == nil {
					im["kind"] = strings.TrimSuffix(kind, "List")
				}
				if im["apiVersion"] == nil {
					im["apiVersion"] = apiVersion
				}
			}
			objs, err := unpack(item, depth+1)
			if err != nil {
				return nil, fmt.Errorf("item %d: %w", i+1, err)
			}
			if out = append(out, objs...); len(out) > MaxObjects {
				return nil, fmt.Errorf("more than %d objects", MaxObjects)
			}
		}
		return out, nil
	}
	switch gv, err := schema.ParseGroupVersion(apiVersion); {
	case apiVersion == "":
		return nil, errors.New("apiVersion is missing")
	case err != nil || gv.Version == "":
		return nil, fmt.Errorf("apiVersion %q is not GROUP/VERSION", apiVersion)
	case kind == "":
		return nil, errors.New("kind is missing")
	case strings.ContainsAny(apiVersion+kind, " \n\t\\?#%") || strings.Contains(kind, "/"):
		return nil, fmt.Errorf("%q of %q is not a kind", kind, apiVersion)
	}
	meta, ok := m["metadata"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s: metadata is missing", kind)
	}
	name, _ := meta["name"].(string)
	if name == "" {
		return nil, fmt.Errorf("%s: metadata.name is missing (generateName is not supported)", kind)
	}
	namespace, ok := meta["namespace"].(string)
	if meta["namespace"] != nil && !ok {
		return nil, fmt.Errorf("%s %s: metadata.namespace is not text", kind, name)
	}
	for _, s := range []string{name, namespace} {
		if strings.ContainsAny(s, "/%\\") || s == "." || s == ".." {
			return nil, fmt.Errorf("%s: %q is not a name", kind, s) // it becomes part of a URL
		}
	}
	for _, field := range []string{"labels", "annotations"} {
		kv, ok := meta[field].(map[string]any)
		if meta[field] != nil && !ok {
			return nil, fmt.Errorf("%s %s: metadata.%s is not a map", kind, name, field)
		}
		for k, v := range kv {
			if _, ok := v.(string); !ok {
				return nil, fmt.Errorf("%s %s: metadata.%s: the value of %q must be text, in quotes", kind, name, field,
					k)
			}
		}
	}
	// Remove what the API server sets: exported objects contain it, and it cannot be applied.
	for _, f := range []string{"managedFields", "resourceVersion", "uid", "creationTimestamp", "generation", "selfLink",
		"deletionTimestamp"} {
		delete(meta, f)
	}
	return []*unstructured.Unstructured{{Object: m}}, nil
}

// rank orders kinds by dependencies: first what defines names and kinds, then what admission refers to, then the rest,
// and last what must not affect the others while it starts.
func rank(o *unstructured.Unstructured) int {
	gk := o.GroupVersionKind().GroupKind()
	switch gk.Kind {
	case "Namespace":
		return 0
	case "CustomResourceDefinition":
		return 1
	case "PriorityClass", "StorageClass", "RuntimeClass", "IngressClass", "ResourceQuota", "LimitRange":
		return 2
	case "ServiceAccount", "ClusterRole", "Role":
		return 3
	case "ClusterRoleBinding", "RoleBinding":
		return 4
	case "Secret", "ConfigMap":
		return 5
	case "Service":
		return 6
	case "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration", "APIService":
		return 9
	}
	return 7
}
