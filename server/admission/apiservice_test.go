package admission

import (
	"testing"

	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/discovery"
)

// TestOfTheAPI: the attack of a user who may change Services in the namespace default: a selector for the Service of
// the API servers, or a slice of endpoints that is counted to it.
func TestOfTheAPI(t *testing.T) {
	meta := func(ns, name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }
	selector := api.ServiceSpec{Selector: map[string]string{"app": "thief"}}
	slice := func(ns, name, service string) *discovery.EndpointSlice {
		m := meta(ns, name)
		m.Labels = map[string]string{"kubernetes.io/service-name": service}
		return &discovery.EndpointSlice{ObjectMeta: m}
	}
	tenant := &user.DefaultInfo{Name: "tenant", Groups: []string{"system:authenticated"}}
	controller := &user.DefaultInfo{Name: "system:serviceaccount:kube-system:endpointslice-controller"}
	server := &user.DefaultInfo{Name: "system:apiserver", Groups: []string{"system:masters"}}
	admin := &user.DefaultInfo{Name: "umiak:admin", Groups: []string{"umiak:admins"}}
	services, endpoints, slices := api.Resource("services"), api.Resource("endpoints"), discovery.Resource("endpointslices")
	for _, c := range []struct {
		what     string
		who      user.Info
		resource schema.GroupResource
		object   runtime.Object
		refused  bool
	}{
		{"a selector", tenant, services, &api.Service{ObjectMeta: meta("default", "kubernetes"), Spec: selector}, true},
		{"an external name", tenant, services, &api.Service{ObjectMeta: meta("default", "kubernetes"),
			Spec: api.ServiceSpec{Type: api.ServiceTypeExternalName}}, true},
		{"a label", tenant, services, &api.Service{ObjectMeta: meta("default", "kubernetes")}, false},
		{"a selector of another Service", tenant, services,
			&api.Service{ObjectMeta: meta("default", "web"), Spec: selector}, false},
		{"one of that name elsewhere", tenant, services,
			&api.Service{ObjectMeta: meta("team", "kubernetes"), Spec: selector}, false},
		{"a slice of the controller for pods", controller, slices, slice("default", "kubernetes-x7d2k", "kubernetes"),
			true},
		{"the servers' slice", tenant, slices, slice("default", "kubernetes", "kubernetes"), true},
		{"a slice of another Service", controller, slices, slice("default", "web-x7d2k", "web"), false},
		{"one elsewhere", controller, slices, slice("team", "kubernetes-x7d2k", "kubernetes"), false},
		{"endpoints", tenant, endpoints, &api.Endpoints{ObjectMeta: meta("default", "kubernetes")}, true},
		{"endpoints of another Service", tenant, endpoints, &api.Endpoints{ObjectMeta: meta("default", "web")}, false},
		{"a server's slice by the server", server, slices, slice("default", "kubernetes", "kubernetes"), false},
		{"a selector by an administrator", admin, services,
			&api.Service{ObjectMeta: meta("default", "kubernetes"), Spec: selector}, false},
	} {
		m, err := apimeta.Accessor(c.object)
		if err != nil {
			t.Fatal(err)
		}
		a := admission.NewAttributesRecord(c.object, nil, schema.GroupVersionKind{}, m.GetNamespace(), m.GetName(),
			c.resource.WithVersion("v1"), "", admission.Create, nil, false, c.who)
		if err := NewServices(Limits{}).Validate(t.Context(), a, nil); (err != nil) != c.refused {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}
