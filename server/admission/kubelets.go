package admission

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/apis/certificates"
	api "k8s.io/kubernetes/pkg/apis/core"

	"github.com/umiak-io/umiak/internal/wellknown"
)

// kubeletsPlugin is the name of the plugin Kubelets, as in --disable-admission-plugins.
const kubeletsPlugin = "UmiakKubelets"

// StaticPods is the label that, with the value "allow", permits mirror Pods of nodes in a namespace. They are always
// permitted in kube-system.
const StaticPods = "umiak.io/static-pods"

// Kubelets refuses requests that upstream allows a kubelet and that harm others, besides those for its own Node:
//   - Events about anything but its Node and the Pods that run there: people and programs act on Events.
//   - Mirror Pods, which stand for files on the node, in the namespaces of tenants: with the labels of a tenant's
//     Pods they would receive the traffic of the tenant's Services and what the tenant's NetworkPolicies allow.
//   - Addresses of Pods and of their host that are not the node's: EndpointSlices and NetworkPolicies are made from
//     them.
//   - Requests for certificates: a node renews its certificates through the join API.
//
// The rights of an agent are those of its role.
type Kubelets struct {
	*admission.Handler
	addresses  Addresses
	otherIPAM  bool
	pods       corelisters.PodLister
	nodes      corelisters.NodeLister
	volumes    corelisters.PersistentVolumeLister
	namespaces corelisters.NamespaceLister
	client     kubernetes.Interface
}

var (
	_ admission.ValidationInterface                = (*Kubelets)(nil)
	_ initializer.WantsExternalKubeInformerFactory = (*Kubelets)(nil)
	_ initializer.WantsExternalKubeClientSet       = (*Kubelets)(nil)
)

// NewKubelets returns the plugin.
func NewKubelets(addresses Addresses, otherIPAM bool) *Kubelets {
	return &Kubelets{Handler: admission.NewHandler(admission.Create, admission.Update), addresses: addresses,
		otherIPAM: otherIPAM}
}

// Name returns kubeletsPlugin.
func (*Kubelets) Name() string { return kubeletsPlugin }

// Register adds the plugin to the API server's plugins.
func (k *Kubelets) Register(plugins *admission.Plugins) {
	plugins.Register(kubeletsPlugin, func(io.Reader) (admission.Interface, error) { return k, nil })
}

// SetExternalKubeInformerFactory implements initializer.WantsExternalKubeInformerFactory.
func (k *Kubelets) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	// These informers exist: upstream's node authorizer and namespace lifecycle, and the plugin Nodes, use them.
	core := f.Core().V1()
	pods, nodes, volumes, namespaces := core.Pods(), core.Nodes(), core.PersistentVolumes(), core.Namespaces()
	k.pods, k.nodes, k.volumes, k.namespaces = pods.Lister(), nodes.Lister(), volumes.Lister(), namespaces.Lister()
	synced := []cache.InformerSynced{pods.Informer().HasSynced, nodes.Informer().HasSynced,
		volumes.Informer().HasSynced, namespaces.Informer().HasSynced}
	k.SetReadyFunc(
		func() bool { return !slices.ContainsFunc(synced, func(f cache.InformerSynced) bool { return !f() }) })
}

// SetExternalKubeClientSet implements initializer.WantsExternalKubeClientSet.
func (k *Kubelets) SetExternalKubeClientSet(c kubernetes.Interface) { k.client = c }

// ValidateInitialization implements admission.InitializationValidator.
func (k *Kubelets) ValidateInitialization() error {
	if k.pods == nil || k.client == nil || k.addresses == nil {
		return errors.New("no lister of Pods, no client, or nothing that knows the addresses of nodes")
	}
	return nil
}

// Validate implements admission.ValidationInterface.
func (k *Kubelets) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if !slices.Contains(a.GetUserInfo().GetGroups(), wellknown.NodesGroup) {
		return nil
	}
	var err error
	switch r := a.GetResource().GroupResource(); {
	case r.Resource == "events":
		err = k.events(ctx, a)
	case r == api.Resource("pods") && a.GetSubresource() == "" && a.GetOperation() == admission.Create:
		err = k.mirror(a.GetNamespace())
	case r == api.Resource("pods") && a.GetSubresource() == "status":
		err = k.podStatus(ctx, a)
	case r == certificates.Resource("certificatesigningrequests") && a.GetOperation() == admission.Create:
		err = errors.New("a node renews its certificates through umiak's join API, it does not request any here")
	}
	if err != nil {
		return admission.NewForbidden(a, err)
	}
	return nil
}

// mirror refuses mirror Pods in namespaces that do not permit them. Upstream's NodeRestriction has refused other Pods
// before.
func (k *Kubelets) mirror(namespace string) error {
	if namespace == metav1.NamespaceSystem {
		return nil
	}
	if !k.WaitForReady() {
		return errNotYet
	}
	if ns, err := k.namespaces.Get(namespace); err == nil && ns.Labels[StaticPods] == "allow" {
		return nil
	}
	return fmt.Errorf(
		"the node runs the static Pod, but its mirror Pod is not permitted in namespace %s: label the namespace %s=allow, or put the Pod into kube-system", namespace, StaticPods)
}

var errNotYet = errors.New("the API server does not know the cluster's Pods and namespaces yet; try again")

// events refuses Events that a node may not create or change.
func (k *Kubelets) events(ctx context.Context, a admission.Attributes) error {
	node, ok := strings.CutPrefix(a.GetUserInfo().GetName(), wellknown.NodeUserPrefix)
	if !ok {
		return errors.New("the user is not a node")
	}
	for _, obj := range []any{a.GetObject(), a.GetOldObject()} {
		ev, ok := obj.(*api.Event)
		if !ok {
			continue // an object that is created has no old version
		}
		if err := k.about(ctx, node, ev); err != nil {
			return err
		}
	}
	return nil
}

// about refuses an Event about an object that is not the node's.
func (k *Kubelets) about(ctx context.Context, node string, ev *api.Event) error {
	o := ev.InvolvedObject
	var may bool
	var err error
	switch {
	case o.Kind == "Node":
		may = o.Name == node && ev.Namespace == metav1.NamespaceDefault
	case !k.WaitForReady():
		err = errNotYet
	case o.Kind == "Pod":
		may, err = k.runs(ctx, node, o.Name, o.Namespace)
		may = may && ev.Namespace == o.Namespace
	case o.Kind == "PersistentVolumeClaim": // of the kubelet that grows it
		may, err = k.claims(node, o.Name, o.Namespace)
		may = may && ev.Namespace == o.Namespace
	case o.Kind == "PersistentVolume":
		if pv, e1 := k.volumes.Get(o.Name); e1 == nil && pv.Spec.ClaimRef != nil &&
			ev.Namespace == metav1.NamespaceDefault {
			may, err = k.claims(node, pv.Spec.ClaimRef.Name, pv.Spec.ClaimRef.Namespace)
		}
	}
	if err == nil && !may {
		err = fmt.Errorf("a node may create Events about itself and its Pods, not about %s %s in namespace %s", o.Kind,
			o.Name, ev.Namespace)
	}
	return err
}

// runs reports whether a Pod is assigned to a node. A kubelet may know a Pod before this server's cache does, so it
// also asks the API.
func (k *Kubelets) runs(ctx context.Context, node, name, namespace string) (bool, error) {
	if p, err := k.pods.Pods(namespace).Get(name); err == nil && p.Spec.NodeName == node {
		return true, nil
	}
	p, err := k.client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get the Pod of an Event: %w", err)
	}
	return p.Spec.NodeName == node, nil
}

// claims reports whether a Pod on a node uses a PersistentVolumeClaim.
func (k *Kubelets) claims(node, name, namespace string) (bool, error) {
	pods, err := k.pods.Pods(namespace).List(labels.Everything())
	return slices.ContainsFunc(pods, func(p *corev1.Pod) bool {
		return p.Spec.NodeName == node && slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
			return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == name || v.Ephemeral != nil &&
				p.Name+"-"+v.Name == name
		})
	}), err
}
