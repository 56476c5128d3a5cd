package admission

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	api "k8s.io/kubernetes/pkg/apis/core"

	"github.com/umiak-io/umiak/internal/systemports"
)

// servicesPlugin is the name of the plugin Services, as in --disable-admission-plugins.
const servicesPlugin = "UmiakServices"

// Limits describes what Services may not take.
type Limits struct {
	// ExternalIPs are the ranges that spec.externalIPs may use; empty means none.
	ExternalIPs []netip.Prefix
	// Inside are the ranges of pods and Services.
	Inside []netip.Prefix
	// Ports are the system's ports on the addresses of nodes and servers. Servers is called for each request, because a
	// server may have no node.
	Ports   systemports.Ports
	Servers func() []netip.Addr
}

// Services refuses Services that claim an address, or a port of an address, that is not theirs: every node would send
// them traffic for the system. A Service keeps what it had before, but nodes create no rules for it
// (agent/dataplane/proxy.Guard).
type Services struct {
	*admission.Handler
	limits Limits
	nodes  corelisters.NodeLister
}

var (
	_ admission.ValidationInterface                = (*Services)(nil)
	_ initializer.WantsExternalKubeInformerFactory = (*Services)(nil)
)

// NewServices returns the plugin.
func NewServices(l Limits) *Services {
	return &Services{Handler: admission.NewHandler(admission.Create, admission.Update), limits: l}
}

// Name returns servicesPlugin.
func (*Services) Name() string { return servicesPlugin }

// Register adds the plugin to the API server's plugins.
func (s *Services) Register(plugins *admission.Plugins) {
	plugins.Register(servicesPlugin, func(io.Reader) (admission.Interface, error) { return s, nil })
}

// SetExternalKubeInformerFactory implements initializer.WantsExternalKubeInformerFactory.
func (s *Services) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	s.nodes = f.Core().V1().Nodes().Lister()
	s.SetReadyFunc(f.Core().V1().Nodes().Informer().HasSynced)
}

// ValidateInitialization implements admission.InitializationValidator.
func (s *Services) ValidateInitialization() error {
	if s.nodes == nil {
		return errors.New("no lister of Nodes")
	}
	return nil
}

// external returns a Service's external IPs, which are deprecated but still in the API.
func external(s *api.Service) []string { return s.Spec.ExternalIPs } //nolint:staticcheck // see above

// Validate implements admission.ValidationInterface.
func (s *Services) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if err := checkAPIService(a); err != nil {
		return admission.NewForbidden(a, err)
	}
	if a.GetResource().GroupResource() != api.Resource("services") {
		return nil
	}
	svc, ok := a.GetObject().(*api.Service)
	if !ok || len(external(svc))+len(svc.Status.LoadBalancer.Ingress) == 0 {
		return nil
	}
	if !s.WaitForReady() {
		return admission.NewForbidden(a, errors.New("the API server does not know the cluster's Nodes yet; try again"))
	}
	old, _ := a.GetOldObject().(*api.Service)
	had := wants(old)
	system, err := s.system()
	if err != nil {
		return admission.NewForbidden(a, fmt.Errorf("list Nodes: %w", err))
	}
	for _, w := range wants(svc) {
		reason := s.refusal(w, system)
		switch {
		case reason == "":
		case slices.Contains(had, w):
			warning.AddWarning(ctx, "", reason+"; nodes do not serve it")
		default:
			return admission.NewForbidden(a, errors.New(reason))
		}
	}
	return nil
}

// want is one address and port that a Service claims.
type want struct {
	address  string
	external bool // by spec.externalIPs, otherwise by status.loadBalancer
	protocol api.Protocol
	port     int32
}

func wants(s *api.Service) (out []want) {
	if s == nil {
		return nil
	}
	add := func(address string, external bool) {
		for _, p := range s.Spec.Ports {
			out = append(out, want{address, external, p.Protocol, p.Port})
		}
	}
	for _, ip := range external(s) {
		add(ip, true)
	}
	for _, in := range s.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			add(in.IP, false)
		}
	}
	return out
}

// refusal returns why a Service may not have what it claims, "" if it may.
func (s *Services) refusal(w want, system []netip.Addr) string {
	ip, err := netip.ParseAddr(w.address)
	if err != nil {
		return "" // the API server's own validation refuses it
	}
	ip = ip.Unmap()
	field := "status.loadBalancer.ingress"
	if w.external {
		field = "spec.externalIPs"
	}
	in := func(p netip.Prefix) bool { return p.Contains(ip) }
	switch {
	case w.external && !slices.ContainsFunc(s.limits.ExternalIPs, in):
		return fmt.Sprintf("%s: %s is not in the ranges of the servers' setting service-external-ips", field, ip)
	case ip.IsLoopback(), ip.IsUnspecified(), ip.IsLinkLocalUnicast(), ip.IsMulticast():
		return fmt.Sprintf("%s: %s is a loopback, unspecified, link-local or multicast address", field, ip)
	case slices.ContainsFunc(s.limits.Inside, in):
		return fmt.Sprintf("%s: %s belongs to the cluster's pods or Services", field, ip)
	}
	holder := s.limits.Ports.Holder(corev1.Protocol(cmp.Or(w.protocol, api.ProtocolTCP)), int(w.port))
	if holder != "" && slices.Contains(system, ip) {
		return fmt.Sprintf("%s: port %d/%s of %s belongs to %s", field, w.port, w.protocol, ip, holder)
	}
	return ""
}

// system returns the addresses of servers and nodes.
func (s *Services) system() ([]netip.Addr, error) {
	out := s.limits.Servers()
	nodes, err := s.nodes.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		for _, a := range n.Status.Addresses {
			ip, err := netip.ParseAddr(a.Address)
			if err == nil && (a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP) {
				out = append(out, ip.Unmap())
			}
		}
	}
	return out, nil
}
