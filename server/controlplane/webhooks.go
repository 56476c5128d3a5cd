package controlplane

import (
	"context"
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/umiak-io/umiak/internal/status"
)

// hook is a validating or mutating webhook, as far as Webhooks looks at it.
type hook struct {
	kind, configuration, name string
	policy                    *admissionv1.FailurePolicyType
	service                   *admissionv1.ServiceReference
	rules                     []admissionv1.RuleWithOperations
}

// Webhooks finds admission webhooks that make every matching write fail because their Service has no endpoints. It
// looks only when its Section is called.
type Webhooks struct {
	// Ready reports whether the API server answers.
	Ready func() bool
	// Client makes a client of it.
	Client func() (kubernetes.Interface, error)
}

// Section returns the section Webhooks of `umiak status`.
func (w Webhooks) Section(ctx context.Context) status.Section {
	out := status.Section{Name: "Webhooks"}
	if !w.Ready() {
		return out
	}
	client, err := w.Client()
	if err != nil {
		return out
	}
	hooks, err := listHooks(ctx, client)
	if err != nil {
		out.Rows = append(out.Rows, status.Row{Name: "webhooks", State: "not known", Detail: err.Error()})
		return out
	}
	for _, h := range hooks {
		if why := h.dead(ctx, client); why != "" {
			out.Rows = append(out.Rows, status.Row{Name: h.name, State: "refuses all",
				Detail: fmt.Sprintf("%s: %s fail until it answers; if it cannot come back: umiak kubectl delete %s %s",
					why, h.what(), h.kind, h.configuration)})
		}
	}
	return out
}

func listHooks(ctx context.Context, client kubernetes.Interface) ([]hook, error) {
	var out []hook
	v, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list validating webhooks: %w", err)
	}
	for _, c := range v.Items {
		for _, w := range c.Webhooks {
			out = append(out, hook{"validatingwebhookconfiguration", c.Name, w.Name, w.FailurePolicy,
				w.ClientConfig.Service, w.Rules})
		}
	}
	m, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list mutating webhooks: %w", err)
	}
	for _, c := range m.Items {
		for _, w := range c.Webhooks {
			out = append(out, hook{"mutatingwebhookconfiguration", c.Name, w.Name, w.FailurePolicy,
				w.ClientConfig.Service, w.Rules})
		}
	}
	return out, nil
}

// dead returns why nothing answers, "" where something may.
func (h hook) dead(ctx context.Context, client kubernetes.Interface) string {
	if h.service == nil || h.policy != nil && *h.policy == admissionv1.Ignore {
		return ""
	}
	slicesOf, err := client.DiscoveryV1().EndpointSlices(h.service.Namespace).List(ctx,
		metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + h.service.Name})
	if err != nil {
		return ""
	}
	for _, sl := range slicesOf.Items {
		ready := func(e discoveryv1.Endpoint) bool { return e.Conditions.Ready == nil || *e.Conditions.Ready }
		if slices.ContainsFunc(sl.Endpoints, ready) {
			return ""
		}
	}
	return fmt.Sprintf("no endpoint behind Service %s/%s", h.service.Namespace, h.service.Name)
}

// what describes the writes that the webhook is asked about.
func (h hook) what() string {
	var ops, resources []string
	for _, r := range h.rules {
		for _, o := range r.Operations {
			ops = append(ops, string(o))
		}
		resources = append(resources, r.Resources...)
	}
	slices.Sort(ops)
	return fmt.Sprintf("%s of %s", strings.Join(slices.Compact(ops), ", "), strings.Join(resources, ", "))
}
