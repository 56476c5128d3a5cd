package admission

import (
	"errors"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/discovery"

	"github.com/umiak-io/umiak/internal/wellknown"
)

// apiService is the name of the Service of the API servers, in the namespace default.
const apiService = "kubernetes"

// ofTheAPI refuses to lead connections that are meant for the API servers elsewhere. Agents and pods find the servers by the Service
// default/kubernetes, and whoever may change Services in that namespace could put pods behind it.
func ofTheAPI(a admission.Attributes) error {
	if a.GetNamespace() != metav1.NamespaceDefault || a.GetSubresource() != "" || administers(a.GetUserInfo()) {
		return nil
	}
	switch o := a.GetObject().(type) {
	case *api.Service:
		if o.Name == apiService && (len(o.Spec.Selector) > 0 || o.Spec.Type == api.ServiceTypeExternalName) {
			return errors.New("the Service of the API servers has no selector and no external name: they publish their addresses themselves")
		}
	case *discovery.EndpointSlice:
		if o.Labels[discoveryv1.LabelServiceName] == apiService {
			return errors.New("the API servers publish their addresses themselves; set another " + discoveryv1.LabelServiceName)
		}
	case *api.Endpoints:
		if o.Name == apiService {
			return errors.New("the API servers publish their addresses themselves")
		}
	}
	return nil
}

// administers reports whether somebody has all rights anyway: an API server itself, or an administrator.
func administers(u user.Info) bool {
	return u != nil && (u.GetName() == user.APIServerUser || slices.Contains(u.GetGroups(), user.SystemPrivilegedGroup) ||
		slices.Contains(u.GetGroups(), wellknown.AdminsGroup))
}
