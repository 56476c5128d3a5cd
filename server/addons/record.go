package addons

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/umiak-io/umiak/server/addons/manifest"
)

const (
	recordNamespace = "kube-system"
	recordPrefix    = "umiak-manifest-"

	// labelRecord marks records, labelManifest the objects in them.
	labelRecord   = "umiak.io/manifest-record"
	labelManifest = "umiak.io/manifest"

	// Labels and annotations of KEP-3659, so that other tools recognize the set and leave it alone.
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
	// Desired is a hash of the applied object; "" for Secrets, whose content could be guessed from it.
	Desired string `json:"d,omitempty"`
	// Fields is the hash of managedFields after the object was applied.
	Fields string `json:"f,omitempty"`
	// Adopted objects existed before, and are not deleted.
	Adopted bool `json:"adopted,omitempty"`
	// By lists the servers whose files name the object, sorted; it is empty if only the embedded manifest names it.
	By []string `json:"by,omitempty"`
}

func (e entry) equal(o entry) bool {
	by := slices.Equal(e.By, o.By)
	e.By, o.By = nil, nil
	return by && reflect.DeepEqual(e, o)
}

func (e entry) gvk() schema.GroupVersionKind {
	return schema.FromAPIVersionAndKind(e.APIVersion, e.Kind)
}
func (e entry) key() manifest.Key {
	return manifest.KeyOf(e.gvk().GroupKind(), e.Namespace, e.Name)
}

// record is what is stored about a manifest in the cluster.
type record struct {
	Name    string             `json:"name"`
	Origin  string             `json:"origin"`
	Server  string             `json:"server,omitempty"` // the first of Servers, for older versions
	Servers map[string]holding `json:"servers,omitempty"`
	State   State              `json:"state"`
	Error   string             `json:"error,omitempty"`
	Items   []entry            `json:"items"`

	uid, version string // of the ConfigMap; "" until it is written
}

// holding describes a server's file of a manifest.
type holding struct {
	Path string `json:"path,omitempty"`
	// Place identifies the mounted file system that the file was on (mounted.At); the file's absence counts only there.
	Place string `json:"place,omitempty"`
	// Node means that the server runs a node.
	Node bool `json:"node,omitempty"`
	// Ragged means that the file regularly ends in the middle of a line.
	Ragged bool `json:"ragged,omitempty"`
}

// place is the file's folder with its file system.
func (h holding) place() holding { return holding{Path: filepath.Dir(h.Path), Place: h.Place} }

func (r *record) clone() *record {
	c := *r
	c.Items = slices.Clone(r.Items)
	c.Servers = maps.Clone(r.Servers)
	return &c // slices By are never modified in place
}

func (r *record) equal(o *record) bool {
	return r.Name == o.Name && r.Origin == o.Origin && r.Server == o.Server && r.State == o.State &&
		r.Error == o.Error &&
		maps.Equal(r.Servers, o.Servers) && slices.EqualFunc(r.Items, o.Items, entry.equal)
}

// newer reports whether r was written after o.
func (r *record) newer(o *record) bool {
	n, err := resourceversion.CompareResourceVersion(r.version, o.version)
	return err != nil || n > 0
}

// settle converts records of versions without Servers. A server that is alone takes over all holdings, because it may
// have had another name.
func (r *record) settle(self string, alone bool) {
	if len(r.Servers) == 0 && r.Server != "" {
		r.Servers = map[string]holding{r.Server: {Path: r.Origin}}
		for i := range r.Items {
			r.Items[i].By = []string{r.Server}
		}
	}
	if _, mine := r.Servers[self]; !alone || len(r.Servers) == 0 || mine && len(r.Servers) == 1 {
		return
	}
	h, mine := r.Servers[self]
	if !mine {
		h = r.Servers[slices.Sorted(maps.Keys(r.Servers))[0]]
	}
	r.Servers, r.Server = map[string]holding{self: h}, self
	for i := range r.Items {
		if len(r.Items[i].By) > 0 {
			r.Items[i].By = []string{self}
		}
	}
}

// hold records that a server has the file.
func (r *record) hold(server string, h holding) {
	if r.Servers == nil {
		r.Servers = map[string]holding{}
	}
	r.Servers[server] = h
	r.Server = slices.Min(slices.Collect(maps.Keys(r.Servers)))
}

// letGo records that servers do not have the file. Objects that their files named stay theirs until released.
func (r *record) letGo(servers ...string) {
	for _, s := range servers {
		delete(r.Servers, s)
	}
	if r.Server = ""; len(r.Servers) > 0 {
		r.Server = slices.Min(slices.Collect(maps.Keys(r.Servers)))
	}
}

// leave records that servers do not have the file, and releases the objects that it named.
func (r *record) leave(servers ...string) {
	r.letGo(servers...)
	for i := range r.Items {
		r.Items[i].release(servers...)
	}
}

func (r *record) holds(server string) bool {
	_, yes := r.Servers[server]
	return yes
}

// unread reports whether it is unknown what the manifest once applied.
func (r *record) unread() bool { return r == nil || len(r.Items) == 0 }

// release removes servers from the list of those whose files name the object.
func (e *entry) release(servers ...string) {
	e.By = slices.DeleteFunc(slices.Clone(e.By), func(s string) bool { return slices.Contains(servers, s) })
	if len(e.By) == 0 {
		e.By = nil
	}
}

// name adds a server to the list of those whose files name the object.
func (e *entry) name(server string) {
	if !slices.Contains(e.By, server) {
		e.By = append(slices.Clone(e.By), server)
		slices.Sort(e.By)
	}
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

// setID is the ApplySet's ID, computed from its parent object as KEP-3659 requires.
func setID(id string) string {
	sum := sha256.Sum256([]byte(recordName(id) + "." + recordNamespace + ".ConfigMap."))
	return "applyset-" + base64.RawURLEncoding.EncodeToString(sum[:]) + "-v1"
}

// object returns the record as a ConfigMap, with the fields that people look for as separate keys.
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
	r := &record{uid: string(cm.UID), version: cm.ResourceVersion}
	if err := json.Unmarshal([]byte(cm.Data["record"]), r); err != nil {
		return id, nil, fmt.Errorf("read record %s: %w", cm.Name, err)
	}
	if manifest.ID(r.Name) != id {
		return id, nil, fmt.Errorf("read record %s: it is of %q", cm.Name, r.Name)
	}
	return id, r, nil
}

var configMaps = resource{core.SchemeGroupVersion.WithResource("configmaps"), true}

// errStale means that another server has written the record since it was read.
var errStale = errors.New("the manifest's record was changed by another server")

// save writes the record, and returns errStale if it was changed meanwhile. The API server writes nothing if nothing
// changed.
func (c *Controller) save(ctx context.Context, id string, r *record) error {
	o, err := r.object(id)
	if err != nil {
		return err
	}
	write := c.client.create
	if r.version != "" {
		o.SetResourceVersion(r.version)
		write = c.client.apply
	}
	m, err := write(ctx, configMaps, o)
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		return errStale
	}
	if err != nil {
		return fmt.Errorf("write record %s: %w", recordName(id), err)
	}
	r.uid, r.version = string(m.UID), m.ResourceVersion
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
	return &core.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: recordNamespace, Name: recordName(id),
		UID: types.UID(r.uid)}
}
