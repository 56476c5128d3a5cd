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

// checkAPIService refuses changes that would redirect connections to the API servers. Agents and pods find the servers
// by the Service default/kubernetes, and anyone who can change Services in that namespace could put pods behind it.
func checkAPIService(a admission.Attributes) error {
	if a.GetNamespace() != metav1.NamespaceDefault || a.GetSubresource() != "" || administers(a.GetUserInfo()) {
		return nil
	}
	switch o := a.GetObject().(type) {
	case *api.Service:
		if o.Name == apiService && (len(o.Spec.Selector) > 0 || o.Spec.Type == api.ServiceTypeExternalName) {
			return errors.New(
				"the Service of the API servers must not have a selector or an external name: the API servers publish their addresses")
		}
	case *discovery.EndpointSlice:
		if o.Labels[discoveryv1.LabelServiceName] == apiService {
			return errors.New("the API servers publish their addresses; set another " + discoveryv1.LabelServiceName)
		}
	case *api.Endpoints:
		if o.Name == apiService {
			return errors.New("the API servers publish their addresses")
		}
	}
	return nil
}

// administers reports whether the user has all rights: an API server or an administrator.
func administers(u user.Info) bool {
	return u != nil && (u.GetName() == user.APIServerUser ||
		slices.Contains(u.GetGroups(), user.SystemPrivilegedGroup) ||
		slices.Contains(u.GetGroups(), wellknown.AdminsGroup))
}
