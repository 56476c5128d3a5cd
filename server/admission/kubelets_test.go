package admission

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/kubernetes/pkg/apis/certificates"
	api "k8s.io/kubernetes/pkg/apis/core"
)

// TestEventsOfKubelets: a node says something in Events about itself and its Pods, and about nothing else.
func TestEventsOfKubelets(t *testing.T) {
	pod := func(namespace, name, node, claim string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Spec: corev1.PodSpec{NodeName: node}}
		if claim != "" {
			p.Spec.Volumes = []corev1.Volume{{Name: "v",
				VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}}
		}
		return p
	}
	volume := func(name, namespace, claim string) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.PersistentVolumeSpec{ClaimRef: &corev1.ObjectReference{Namespace: namespace, Name: claim}}}
	}
	cached := fake.NewClientset(pod("a", "mine", "n1", "c"), pod("a", "other", "n2", "d"), volume("pv", "a", "c"),
		volume("pv2", "a", "d"))
	f := informers.NewSharedInformerFactory(cached, 0)
	e := NewKubelets(free{}, false)
	e.SetExternalKubeInformerFactory(f)
	e.SetExternalKubeClientSet(fake.NewClientset(pod("a", "late", "n1", ""))) // what the cache does not have yet
	if err := e.ValidateInitialization(); err != nil {
		t.Fatal(err)
	}
	f.Start(t.Context().Done())
	f.WaitForCacheSync(t.Context().Done())

	event := func(in, kind, namespace, name string) *api.Event {
		return &api.Event{ObjectMeta: metav1.ObjectMeta{Namespace: in, Name: "e"},
			InvolvedObject: api.ObjectReference{Kind: kind, Namespace: namespace, Name: name}}
	}
	mine := event("a", "Pod", "a", "mine")
	const node, nodes = "system:node:n1", "system:nodes"
	for _, c := range []struct {
		name, user, group string
		old, now          *api.Event
		refused           bool
	}{
		{"its Pod", node, nodes, nil, mine, false},
		{"its Pod, again", node, nodes, mine, mine, false},
		{"a Pod that the cache does not know", node, nodes, nil, event("a", "Pod", "a", "late"), false},
		{"another's Pod", node, nodes, nil, event("a", "Pod", "a", "other"), true},
		{"no Pod", node, nodes, nil, event("a", "Pod", "a", "none"), true},
		{"its Pod, in another namespace", node, nodes, nil, event("b", "Pod", "a", "mine"), true},
		{"another's Event", node, nodes, event("a", "Pod", "a", "other"), mine, true},
		{"itself", node, nodes, nil, event("default", "Node", "", "n1"), false},
		{"itself, in a tenant's namespace", node, nodes, nil, event("a", "Node", "", "n1"), true},
		{"another Node", node, nodes, nil, event("default", "Node", "", "n2"), true},
		{"a claim of its Pod", node, nodes, nil, event("a", "PersistentVolumeClaim", "a", "c"), false},
		{"another's claim", node, nodes, nil, event("a", "PersistentVolumeClaim", "a", "d"), true},
		{"a volume of its Pod", node, nodes, nil, event("default", "PersistentVolume", "", "pv"), false},
		{"another's volume", node, nodes, nil, event("default", "PersistentVolume", "", "pv2"), true},
		{"no volume", node, nodes, nil, event("default", "PersistentVolume", "", "pv3"), true},
		{"a Deployment", node, nodes, nil, event("a", "Deployment", "a", "mine"), true},
		{"who is no node but in its group", "someone", nodes, nil, mine, true},
		{"a controller", "system:kube-controller-manager", "system:authenticated", nil,
			event("a", "Deployment", "a", "x"), false},
	} {
		op, old := admission.Create, runtime.Object(nil)
		if c.old != nil {
			op, old = admission.Update, c.old
		}
		for _, gv := range []string{"", "events.k8s.io"} {
			r := api.Resource("events").WithVersion("v1")
			r.Group = gv
			a := admission.NewAttributesRecord(c.now, old, api.Kind("Event").WithVersion("v1"), c.now.Namespace, "e", r,
				"", op, nil, false, &user.DefaultInfo{Name: c.user, Groups: []string{c.group}})
			if err := e.Validate(t.Context(), a, nil); (err != nil) != c.refused {
				t.Errorf("%s: %v, refused is to be %v", c.name, err, c.refused)
			}
		}
	}
}

// TestWhatKubeletsCreate: mirror Pods in namespaces that expect them, and no requests for certificates.
func TestWhatKubeletsCreate(t *testing.T) {
	namespace := func(name string, labels map[string]string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	f := informers.NewSharedInformerFactory(fake.NewClientset(namespace("kube-system", nil), namespace("tenant", nil),
		namespace("static", map[string]string{StaticPods: "allow"})), 0)
	k := NewKubelets(free{}, false)
	k.SetExternalKubeInformerFactory(f)
	k.SetExternalKubeClientSet(fake.NewClientset())
	f.Start(t.Context().Done())
	f.WaitForCacheSync(t.Context().Done())
	pods, csr := api.Resource("pods").WithVersion("v1"), certificates.Resource("certificatesigningrequests").WithVersion("v1")
	for _, c := range []struct {
		name, group, namespace, sub string
		resource                    schema.GroupVersionResource
		refused                     bool
	}{
		{"in kube-system", "system:nodes", "kube-system", "", pods, false},
		{"in a tenant's namespace", "system:nodes", "tenant", "", pods, true},
		{"where it is allowed", "system:nodes", "static", "", pods, false},
		{"in no namespace that there is", "system:nodes", "none", "", pods, true},
		{"an eviction", "system:nodes", "tenant", "eviction", pods, false},
		{"a controller's", "system:serviceaccounts", "tenant", "", pods, false},
		{"a certificate", "system:nodes", "", "", csr, true},
		{"a person's certificate", "system:authenticated", "", "", csr, false},
	} {
		a := admission.NewAttributesRecord(nil, nil, api.Kind("Pod").WithVersion("v1"), c.namespace, "x", c.resource,
			c.sub, admission.Create, nil, false,
			&user.DefaultInfo{Name: "system:node:n1", Groups: []string{c.group}})
		if err := k.Validate(t.Context(), a, nil); (err != nil) != c.refused {
			t.Errorf("%s: %v, refused is to be %v", c.name, err, c.refused)
		}
	}
}
