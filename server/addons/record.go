package addons

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/umiak-io/umiak/server/addons/manifest"
)

const (
	recordNamespace = "kube-system"
	recordPrefix    = "umiak-manifest-"

	// labelRecord marks the records, labelManifest what they list.
	labelRecord   = "umiak.io/manifest-record"
	labelManifest = "umiak.io/manifest"

	// Of KEP-3659, so that other tools see what belongs together and keep their hands off.
	labelSetID        = "applyset.kubernetes.io/id"
	labelPartOf       = "applyset.kubernetes.io/part-of"
	annotationTooling = "applyset.kubernetes.io/tooling"
	annotationKinds   = "applyset.kubernetes.io/contains-group-kinds"
	annotationSpaces  = "applyset.kubernetes.io/additional-namespaces"
)

// entry is one object that a manifest has applied or is about to apply.
type entry struct {
	APIVersion string `json:"v"`
	Kind       string `json:"k"`
	Namespace  string `json:"ns,omitempty"`
	Name       string `json:"n"`
	// Desired is a hash of what was applied; none for Secrets, whose content could be guessed from it.
	Desired string `json:"d,omitempty"`
	// Fields is the hash of managedFields after that.
	Fields string `json:"f,omitempty"`
	// Adopted objects were there before us, and stay when we go.
	Adopted bool `json:"adopted,omitempty"`
}

func (e entry) gvk() schema.GroupVersionKind {
	return schema.FromAPIVersionAndKind(e.APIVersion, e.Kind)
}
func (e entry) key() manifest.Key {
	return manifest.KeyOf(e.gvk().GroupKind(), e.Namespace, e.Name)
}

// record is what is remembered of a manifest in the cluster.
type record struct {
	Name   string  `json:"name"`
	Origin string  `json:"origin"`
	Server string  `json:"server,omitempty"` // whose file it is
	State  State   `json:"state"`
	Error  string  `json:"error,omitempty"`
	Items  []entry `json:"items"`

	uid string // of the ConfigMap, for events
}

func (r *record) clone() *record {
	c := *r
	c.Items = slices.Clone(r.Items)
	return &c
}

func (r *record) find(k manifest.Key) (entry, bool) {
	i := slices.IndexFunc(r.Items, func(e entry) bool { return e.key() == k })
	if i < 0 {
		return entry{}, false
	}
	return r.Items[i], true
}

func (r *record) put(e entry) {
	k := e.key()
	if i := slices.IndexFunc(r.Items, func(o entry) bool { return o.key() == k }); i >= 0 {
		r.Items[i] = e
		return
	}
	r.Items = append(r.Items, e)
}

func (r *record) drop(k manifest.Key) {
	r.Items = slices.DeleteFunc(r.Items, func(e entry) bool { return e.key() == k })
}

func recordName(id string) string { return recordPrefix + id }

// setID is the ApplySet's identity as the KEP computes it from its parent object.
func setID(id string) string {
	sum := sha256.Sum256([]byte(recordName(id) + "." + recordNamespace + ".ConfigMap."))
	return "applyset-" + base64.RawURLEncoding.EncodeToString(sum[:]) + "-v1"
}

// object is the record as a ConfigMap. The parts that people look for are keys of their own.
func (r *record) object(id string) (*unstructured.Unstructured, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode record of %s: %w", r.Name, err)
	}
	kinds, spaces := map[string]bool{}, map[string]bool{}
	for _, e := range r.Items {
		kinds[e.gvk().GroupKind().String()] = true
		if e.Namespace != "" && e.Namespace != recordNamespace {
			spaces[e.Namespace] = true
		}
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{
			"name": recordName(id), "namespace": recordNamespace,
			"labels": map[string]any{labelRecord: id, labelSetID: setID(id)},
			"annotations": map[string]any{
				annotationTooling: "umiak/v1",
				annotationKinds:   strings.Join(slices.Sorted(maps.Keys(kinds)), ","),
				annotationSpaces:  strings.Join(slices.Sorted(maps.Keys(spaces)), ","),
			},
		},
		"data": map[string]any{"manifest": r.Origin, "state": string(r.State), "error": r.Error, "record": string(b)},
	}}, nil
}

func decodeRecord(cm *core.ConfigMap) (string, *record, error) {
	id := strings.TrimPrefix(cm.Name, recordPrefix)
	r := &record{uid: string(cm.UID)}
	if err := json.Unmarshal([]byte(cm.Data["record"]), r); err != nil {
		return id, nil, fmt.Errorf("read record %s: %w", cm.Name, err)
	}
	if manifest.ID(r.Name) != id {
		return id, nil, fmt.Errorf("read record %s: it is of %q", cm.Name, r.Name)
	}
	return id, r, nil
}

var configMaps = resource{core.SchemeGroupVersion.WithResource("configmaps"), true}

// save writes the record; nothing is written by the API server when nothing changed.
func (c *Controller) save(ctx context.Context, id string, r *record) error {
	o, err := r.object(id)
	if err != nil {
		return err
	}
	m, err := c.client.apply(ctx, configMaps, o)
	if err != nil {
		return fmt.Errorf("write record %s: %w", recordName(id), err)
	}
	r.uid = string(m.UID)
	return nil
}

func (c *Controller) forget(ctx context.Context, id string) error {
	m, err := c.client.get(ctx, configMaps, recordNamespace, recordName(id))
	if err == nil && m != nil {
		err = c.client.remove(ctx, configMaps, recordNamespace, m.Name, m.UID)
	}
	if err != nil {
		return fmt.Errorf("remove record %s: %w", recordName(id), err)
	}
	return nil
}

func (r *record) reference(id string) *core.ObjectReference {
	return &core.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: recordNamespace, Name: recordName(id), UID: types.UID(r.uid)}
}
