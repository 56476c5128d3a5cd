package addons_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"

	"github.com/umiak-io/umiak/server/addons"
)

// buoys is a kind without namespaces whose files say one all the same, as Helm and kustomize write it.
const buoys = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: buoys.scope.example.org, namespace: team}
spec:
  group: scope.example.org
  scope: Cluster
  names: {plural: buoys, kind: Buoy}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}, {name: v2, served: true, storage: false, schema: {openAPIV3Schema: {type: object}}}]
---
`

const buoy = "apiVersion: scope.example.org/v1\nkind: Buoy\nmetadata: {name: b1, namespace: team}\n---\n"

func role(name, namespace string) string {
	return fmt.Sprintf("apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: %s, namespace: %q}\nrules: []\n---\n", name, namespace)
}

// live is the object's identity by which it is known that it was not deleted and made anew, "" when it is not there.
func (f *fixture) live(gvr schema.GroupVersionResource, namespace, name string) types.UID {
	f.t.Helper()
	c, err := metadata.NewForConfig(f.cluster)
	f.must(err)
	o, err := c.Resource(gvr).Namespace(namespace).Get(f.t.Context(), name, meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		return ""
	}
	f.must(err)
	return o.UID
}

var (
	clusterRoles = schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1",
		Resource: "clusterroles"}
	buoyObjects = schema.GroupVersionResource{Group: "scope.example.org", Version: "v1", Resource: "buoys"}
	crds        = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1",
		Resource: "customresourcedefinitions"}
	coreEvents = schema.GroupVersionResource{Version: "v1", Resource: "events"}
)

// TestNamespaceOfWhatHasNone: the file's namespace of a kind without namespaces neither hides an object from what it
// has applied nor makes two of one.
func TestNamespaceOfWhatHasNone(t *testing.T) {
	f := newFixture(t)
	const volume = "apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: scope-pv, namespace: team}\n" +
		"spec: {capacity: {storage: 1Mi}, accessModes: [ReadWriteOnce], hostPath: {path: /tmp}}\n---\n"
	all := func() map[string]types.UID {
		return map[string]types.UID{
			"role": f.live(clusterRoles, "", "scope-r"), "crd": f.live(crds, "", "buoys.scope.example.org"),
			"buoy": f.live(buoyObjects, "", "b1"),
			"pv":   f.live(schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumes"}, "", "scope-pv"),
			"ns":   f.live(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, "", "scope-ns"),
		}
	}
	space := "apiVersion: v1\nkind: Namespace\nmetadata: {name: scope-ns, namespace: team}\n---\n"
	text := role("scope-r", "team") + buoys + buoy + volume + space
	f.write("own.yaml", text+cm("scope-c", "1"))
	f.start()
	f.is("own", addons.Applied)
	f.eventually("a quiet folder", func() bool { return f.Objects("own") == 6 })
	have := all()
	same := func(when string) {
		t.Helper()
		f.is("own", addons.Applied)
		for what, uid := range all() {
			if uid == "" || uid != have[what] {
				t.Errorf("%s: %s was %q and is %q", when, what, have[what], uid)
			}
		}
	}
	// What is pruned by a later change is pruned after what the file names might have been.
	f.write("own.yaml", text)
	f.eventually("what is in no file being pruned", func() bool { return f.configMap("scope-c") == nil })
	same("applied")
	f.stop()
	f.start()
	f.write("last.yaml", cm("scope-d", "1"))
	f.is("last", addons.Applied)
	f.remove("last.yaml")
	f.eventually("what is in no file being pruned", func() bool { return f.configMap("scope-d") == nil })
	same("after a restart")
	// Another namespace, and another name of the file, is no other object.
	f.write("own.yaml", strings.ReplaceAll(text, "namespace: team", "namespace: crew")+cm("scope-c", "1"))
	f.eventually("the change", func() bool { return f.configMap("scope-c") != nil })
	f.write("own.yaml", strings.ReplaceAll(text, "namespace: team", "namespace: \"\"")+cm("scope-d", "1"))
	f.eventually("what is in no file being pruned", func() bool { return f.configMap("scope-c") == nil })
	same("with another namespace")
	f.write("own.yaml", text)
	f.eventually("the change", func() bool { return f.configMap("scope-d") == nil })
	f.write("moved.yaml", text)
	f.remove("own.yaml")
	f.is("moved", addons.Applied)
	f.eventually("the end of the old name", func() bool { s, _ := f.state("own"); return s == "" })
	f.write("own.yaml", text)
	f.remove("moved.yaml")
	f.eventually("the end of the new name", func() bool { s, _ := f.state("moved"); return s == "" })
	same("under another name")
	// It belongs to one file, whatever their namespaces.
	f.write("second.yaml", role("scope-r", "crew"))
	f.is("second", addons.Failing)
	if _, text := f.state("second"); !strings.Contains(text, "manifest own, which comes first") {
		t.Errorf("an object of two files: %q", text)
	}
	f.remove("second.yaml")
	f.write("twice.yaml", role("scope-t", "a")+role("scope-t", "b"))
	f.is("twice", addons.Failing)
	if _, text := f.state("twice"); !strings.Contains(text, "in the file twice") {
		t.Errorf("an object twice in a file: %q", text)
	}
	f.remove("twice.yaml")
	same("beside others")
	f.remove("own.yaml")
	f.eventually("all being pruned", func() bool {
		for what, uid := range all() {
			if uid != "" && what != "ns" { // no controller ends a Namespace here
				return false
			}
		}
		return len(f.Status()) == 0
	})
}

// TestSameObjectOtherwiseWritten: the namespace that every object has, another version of its API, another group of it.
func TestSameObjectOtherwiseWritten(t *testing.T) {
	f := newFixture(t)
	f.start()
	f.write("crd.yaml", strings.ReplaceAll(buoys, "scope.example.org", "other.example.org"))
	f.is("crd", addons.Applied)
	event := func(api, field string) string {
		return "apiVersion: " + api + "\nkind: Event\nmetadata: {name: scope-e, namespace: default}\ntype: Normal\nreason: Test\n" + field + "\n---\n"
	}
	text := func(namespace, version, event string) string {
		return strings.Replace(cm("scope-w", "1"), "{name: scope-w}", "{name: scope-w"+namespace+"}", 1) +
			strings.NewReplacer("scope.example.org/v1", "other.example.org/"+version).Replace(buoy) + event
	}
	objects := schema.GroupVersionResource{Group: "other.example.org", Version: "v1", Resource: "buoys"}
	old := event("v1", "involvedObject: {kind: Node, name: node1, namespace: default}")
	f.write("w.yaml", text("", "v1", old))
	f.is("w", addons.Applied)
	have := []types.UID{f.uid("scope-w"), f.live(objects, "", "b1"), f.live(coreEvents, "default", "scope-e")}
	for i, next := range []string{
		text(", namespace: default", "v2", old),
		text("", "v2", event("events.k8s.io/v1", "regarding: {kind: Node, name: node1, namespace: default}")),
		text(", namespace: default", "v1", old),
	} {
		f.write("w.yaml", next+cm(fmt.Sprintf("scope-%d", i), "1"))
		f.eventually("its being applied", func() bool { return f.configMap(fmt.Sprintf("scope-%d", i)) != nil })
		f.write("w.yaml", next)
		f.eventually("what is in no file being pruned",
			func() bool { return f.configMap(fmt.Sprintf("scope-%d", i)) == nil })
		f.is("w", addons.Applied)
		now := []types.UID{f.uid("scope-w"), f.live(objects, "", "b1"), f.live(coreEvents, "default", "scope-e")}
		if fmt.Sprint(now) != fmt.Sprint(have) {
			t.Errorf("%d: they were %q and are %q", i, have, now)
		}
	}
}

// TestScopeInRecordOfBefore: a version before wrote the record of what it was about to delete.
func TestScopeInRecordOfBefore(t *testing.T) {
	f := newFixture(t)
	f.write("o.yaml", role("scope-o", "team")+cm("scope-x", "1"))
	f.start()
	f.is("o", addons.Applied)
	have := f.live(clusterRoles, "", "scope-o")
	f.stop()
	maps := f.client.CoreV1().ConfigMaps("kube-system")
	rec, err := maps.Get(t.Context(), "umiak-manifest-o", meta.GetOptions{})
	f.must(err)
	items := `{"v":"rbac.authorization.k8s.io/v1","k":"ClusterRole","n":"scope-o"},{"v":"v1","k":"ConfigMap","ns":"default","n":"scope-x"}`
	rec.Data["record"] = fmt.Sprintf(`{"name":"o","origin":%q,"server":%q,"state":"applied","items":[%s]}`,
		filepath.Join(f.dir, "o.yaml"), f.name, items)
	_, err = maps.Update(t.Context(), rec, meta.UpdateOptions{})
	f.must(err)
	f.write("o.yaml", role("scope-o", "team"))
	f.start()
	f.eventually("what is no longer in it being pruned", func() bool { return f.configMap("scope-x") == nil })
	if now := f.live(clusterRoles, "", "scope-o"); now != have {
		t.Errorf("it was %q and is %q", have, now)
	}
}

// Objects is how many objects of a manifest are known.
func (f *fixture) Objects(name string) int {
	for _, s := range f.Status() {
		if s.Name == name {
			return s.Objects
		}
	}
	return 0
}
