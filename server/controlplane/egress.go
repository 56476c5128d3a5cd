package controlplane

import (
	"context"
	"fmt"
	"net"

	apiextensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/server/egressselector"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/tools/cache"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/controlplane"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"
	generatedopenapi "k8s.io/kubernetes/pkg/generated/openapi"
)

// Egress makes the API server's connections to nodes and pods: to kubelets, to what is asked for with the
// proxies of nodes, pods and Services, to aggregated API servers and to webhooks behind Services.
type Egress interface {
	// Follow is given the API server's informer of Nodes before it starts.
	Follow(nodes cache.SharedIndexInformer) error
	// DialContext connects to an address, or to a kubelet by its node's name, where a user prefers those.
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
}

// DialWith has e make the connections. A user's egress-selector-config-file comes first. Call it before Run.
func (a *APIServer) DialWith(e Egress) { a.egress = e }

// newConfig does what upstream's app.NewConfig does, with the same exported functions. That one offers no way
// to give the API server a dialer but a file that names a proxy on a socket. Between its first two steps the
// configuration's EgressSelector can be set, which is the field that all that follows dials with. When a
// release changes the steps, this does not compile; that everything dials with it, TestEgress shows.
func newConfig(opts options.CompletedOptions, egress Egress) (*app.Config, error) {
	c := &app.Config{Options: opts}
	generic, informers, storage, err := controlplaneapiserver.BuildGenericConfig(opts.CompletedOptions,
		[]*runtime.Scheme{legacyscheme.Scheme, apiextensionsapiserver.Scheme, aggregatorscheme.Scheme},
		controlplane.DefaultAPIResourceConfigSource(), generatedopenapi.GetOpenAPIDefinitions, opts.InformerName)
	if err != nil {
		return nil, err
	}
	if egress != nil && generic.EgressSelector == nil {
		// Admission plugins and the node authorizer have this informer running in any case.
		if err := egress.Follow(informers.Core().V1().Nodes().Informer()); err != nil {
			return nil, fmt.Errorf("follow nodes: %w", err)
		}
		// Nothing for the datastore and for webhooks given by URL: those dial as ever.
		generic.EgressSelector = egressselector.NewEgressSelectorWithMap(map[egressselector.EgressType]utilnet.DialFunc{
			egressselector.Cluster: egress.DialContext,
		})
	}
	kube, services, plugins, err := app.CreateKubeAPIServerConfig(opts, generic, informers, storage)
	if err != nil {
		return nil, err
	}
	c.KubeAPIs = kube
	c.ApiExtensions, err = controlplaneapiserver.CreateAPIExtensionsConfig(*kube.ControlPlane.Generic,
		kube.ControlPlane.VersionedInformers, plugins, opts.CompletedOptions, opts.MasterCount, services,
		webhook.NewDefaultAuthenticationInfoResolverWrapper(kube.ControlPlane.ProxyTransport,
			kube.ControlPlane.Generic.EgressSelector, kube.ControlPlane.Generic.LoopbackClientConfig,
			kube.ControlPlane.Generic.TracerProvider))
	if err != nil {
		return nil, err
	}
	c.Aggregator, err = controlplaneapiserver.CreateAggregatorConfig(*kube.ControlPlane.Generic, opts.CompletedOptions,
		kube.ControlPlane.VersionedInformers, services, kube.ControlPlane.ProxyTransport, kube.ControlPlane.PeerProxy,
		plugins)
	if err != nil {
		return nil, err
	}
	return c, nil
}
