package controlplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	schedulingv1 "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	flowcontrolrest "k8s.io/kubernetes/pkg/registry/flowcontrol/rest"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"

	"github.com/umiak-io/umiak/internal/retry"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// agentRole is the name of the roles of wellknown.AgentsGroup.
const agentRole = "umiak:agent"

// hooks run when the API server has begun to answer; /readyz waits for them. The first two stand in for two of
// upstream's, under their names: those wait a second before they begin and then send their 200 requests one after the
// other, which is most of the time that an API server needs to become ready. The policy is upstream's, and so is the
// code that compares and changes roles.
var hooks = map[string]func(context.Context, *rest.Config) error{
	rbacrest.PostStartHookName:       ensureRoles,
	schedulingrest.PostStartHookName: ensurePriorityClasses,
	"umiak/service-addresses":        awaitAddresses,
}

// ownHooks are the hooks, and upstream's for flow schemas: all are given time.
func ownHooks(shared informers.SharedInformerFactory) (map[string]genericapiserver.PostStartHookFunc, error) {
	name, flows, err := flowcontrolrest.RESTStorageProvider{InformerFactory: shared}.PostStartHook()
	if err != nil {
		return nil, fmt.Errorf("make hook: %w", err)
	}
	out := map[string]genericapiserver.PostStartHookFunc{name: flows}
	for name, f := range hooks {
		out[name] = runHook(f)
	}
	return out, nil
}

func runHook(f func(context.Context, *rest.Config) error) genericapiserver.PostStartHookFunc {
	return func(ctx genericapiserver.PostStartHookContext) error { return f(ctx, ctx.LoopbackClientConfig) }
}

// ownRoles returns the roles of Umiak's own identities. Agents see little of Pods, see server/podview.
func ownRoles() []rbacv1.ClusterRole {
	read := []string{"get", "list", "watch"}
	return []rbacv1.ClusterRole{
		{
			ObjectMeta: metav1.ObjectMeta{Name: agentRole},
			Rules: []rbacv1.PolicyRule{
				{APIGroups: []string{""}, Resources: []string{"services", "namespaces", "pods", "nodes"}, Verbs: read},
				{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
				{APIGroups: []string{"networking.k8s.io"}, Resources: []string{"networkpolicies"}, Verbs: read},
			},
		},
		{
			ObjectMeta: metav1.ObjectMeta{Name: "umiak:monitoring"},
			Rules:      []rbacv1.PolicyRule{{NonResourceURLs: []string{HealthPath}, Verbs: []string{"get"}}},
		},
	}
}

func ownBindings() []rbacv1.ClusterRoleBinding {
	bind := func(name, role, kind, subject string) rbacv1.ClusterRoleBinding {
		return rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: kind, Name: subject}},
		}
	}
	return []rbacv1.ClusterRoleBinding{
		bind("umiak:kubelet-client", "system:kubelet-api-admin", rbacv1.UserKind, wellknown.KubeletClientUser),
		bind("umiak:admins", "cluster-admin", rbacv1.GroupKind, wellknown.AdminsGroup),
		bind("umiak:agents", agentRole, rbacv1.GroupKind, wellknown.AgentsGroup),
		bind("umiak:monitoring", "umiak:monitoring", rbacv1.GroupKind, "system:monitoring"),
	}
}

// ownNamespaceRole returns the role by which agents follow the two ConfigMaps with which users set up DNS, and report
// errors in them as Events.
func ownNamespaceRole() (rbacv1.Role, rbacv1.RoleBinding) {
	meta := metav1.ObjectMeta{Name: agentRole, Namespace: metav1.NamespaceSystem}
	return rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{""}, Resources: []string{"configmaps"},
			ResourceNames: []string{"coredns", "coredns-custom"}, Verbs: []string{"get", "list", "watch"},
		}, {
			APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"},
		}}}, rbacv1.RoleBinding{
			ObjectMeta: meta,
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind,
				Name: wellknown.AgentsGroup}},
		}
}

// ensureRoles gives upstream's and umiak's identities their rights. It lists what is there once, so that
// a restart of a server costs four requests and no write.
func ensureRoles(ctx context.Context, c *rest.Config) error {
	client, err := clientFor(c)
	if err != nil {
		return fmt.Errorf("grant access: %w", err)
	}
	have, err := listRoles(ctx, client)
	if err != nil {
		return fmt.Errorf("grant access: %w", err)
	}
	// Requests at once: the datastore commits them in groups.
	var g errgroup.Group
	g.SetLimit(16)
	role := func(r reconciliation.RuleOwner, m reconciliation.RuleOwnerModifier) {
		// What an earlier release has given agents and this one does not goes away; upstream's roles keep what users
		// have added.
		agents := r.GetName() == agentRole
		o := reconciliation.ReconcileRoleOptions{Role: r, Client: knownRole{m, have}, Confirm: true,
			RemoveExtraPermissions: agents}
		g.Go(func() error { return retryStart(ctx, func() error { _, err := o.Run(); return err }) })
	}
	binding := func(b reconciliation.RoleBinding, m reconciliation.RoleBindingModifier) {
		o := reconciliation.ReconcileRoleBindingOptions{RoleBinding: b, Client: knownBinding{m, have}, Confirm: true}
		g.Go(func() error { return retryStart(ctx, func() error { _, err := o.Run(); return err }) })
	}
	rbac, namespaces := client.RbacV1(), client.CoreV1().Namespaces()
	for _, r := range slices.Concat(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles(), ownRoles()) {
		role(reconciliation.ClusterRoleRuleOwner{ClusterRole: &r},
			reconciliation.ClusterRoleModifier{Client: rbac.ClusterRoles()})
	}
	for _, b := range slices.Concat(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings(),
		ownBindings()) {
		binding(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &b},
			reconciliation.ClusterRoleBindingClientAdapter{Client: rbac.ClusterRoleBindings()})
	}
	roles, bindings := bootstrappolicy.NamespaceRoles(), bootstrappolicy.NamespaceRoleBindings()
	r, b := ownNamespaceRole()
	roleLists, bindingLists := [][]rbacv1.Role{{r}}, [][]rbacv1.RoleBinding{{b}}
	for _, l := range roles {
		roleLists = append(roleLists, l)
	}
	for _, l := range bindings {
		bindingLists = append(bindingLists, l)
	}
	for _, r := range slices.Concat(roleLists...) {
		role(reconciliation.RoleRuleOwner{Role: &r},
			reconciliation.RoleModifier{Client: rbac, NamespaceClient: namespaces})
	}
	for _, b := range slices.Concat(bindingLists...) {
		binding(reconciliation.RoleBindingAdapter{RoleBinding: &b},
			reconciliation.RoleBindingClientAdapter{Client: rbac, NamespaceClient: namespaces})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("grant access: %w", err)
	}
	return nil
}

// ensurePriorityClasses makes the two that system pods use.
func ensurePriorityClasses(ctx context.Context, c *rest.Config) error {
	client, err := clientFor(c)
	if err != nil {
		return fmt.Errorf("make priority classes: %w", err)
	}
	classes := client.SchedulingV1().PriorityClasses()
	for _, pc := range schedulingv1.SystemPriorityClasses() {
		err := retryStart(ctx, func() error {
			_, err := classes.Get(ctx, pc.Name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				_, err = classes.Create(ctx, pc, metav1.CreateOptions{})
			}
			if apierrors.IsAlreadyExists(err) {
				return nil
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("make priority class %s: %w", pc.Name, err)
		}
	}
	return nil
}

// known holds the objects of a list by namespace and name.
type known struct {
	roles    map[string]reconciliation.RuleOwner
	bindings map[string]reconciliation.RoleBinding
}

func listRoles(ctx context.Context, client kubernetes.Interface) (*known, error) {
	k := &known{roles: map[string]reconciliation.RuleOwner{}, bindings: map[string]reconciliation.RoleBinding{}}
	rbac := client.RbacV1()
	err := retryStart(ctx, func() error {
		cr, errCR := rbac.ClusterRoles().List(ctx, metav1.ListOptions{})
		cb, errCB := rbac.ClusterRoleBindings().List(ctx, metav1.ListOptions{})
		r, errR := rbac.Roles("").List(ctx, metav1.ListOptions{})
		b, errB := rbac.RoleBindings("").List(ctx, metav1.ListOptions{})
		if err := errors.Join(errCR, errCB, errR, errB); err != nil {
			return err
		}
		for i := range cr.Items {
			k.roles["/"+cr.Items[i].Name] = reconciliation.ClusterRoleRuleOwner{ClusterRole: &cr.Items[i]}
		}
		for i := range cb.Items {
			k.bindings["/"+cb.Items[i].Name] = reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &cb.Items[i]}
		}
		for i := range r.Items {
			k.roles[r.Items[i].Namespace+"/"+r.Items[i].Name] = reconciliation.RoleRuleOwner{Role: &r.Items[i]}
		}
		for i := range b.Items {
			k.bindings[b.Items[i].Namespace+"/"+
				b.Items[i].Name] = reconciliation.RoleBindingAdapter{RoleBinding: &b.Items[i]}
		}
		return nil
	})
	return k, err
}

// knownRole answers from the list; writes go to the server. When one is refused because the list has
// become old, the object is read afresh.
type knownRole struct {
	reconciliation.RuleOwnerModifier
	k *known
}

func (m knownRole) Get(namespace, name string) (reconciliation.RuleOwner, error) {
	if r, ok := m.k.roles[namespace+"/"+name]; ok {
		return r.DeepCopyRuleOwner(), nil
	}
	return nil, apierrors.NewNotFound(rbacv1.Resource("roles"), name)
}

func (m knownRole) Create(r reconciliation.RuleOwner) (reconciliation.RuleOwner, error) {
	out, err := m.RuleOwnerModifier.Create(r)
	if apierrors.IsAlreadyExists(err) {
		return m.RuleOwnerModifier.Get(r.GetNamespace(), r.GetName())
	}
	return out, err
}

type knownBinding struct {
	reconciliation.RoleBindingModifier
	k *known
}

func (m knownBinding) Get(namespace, name string) (reconciliation.RoleBinding, error) {
	if b, ok := m.k.bindings[namespace+"/"+name]; ok {
		return b.DeepCopyRoleBinding(), nil
	}
	return nil, apierrors.NewNotFound(rbacv1.Resource("rolebindings"), name)
}

func (m knownBinding) Create(b reconciliation.RoleBinding) (reconciliation.RoleBinding, error) {
	out, err := m.RoleBindingModifier.Create(b)
	if apierrors.IsAlreadyExists(err) {
		return m.RoleBindingModifier.Get(b.GetNamespace(), b.GetName())
	}
	return out, err
}

// clientFor is a client without a rate limit: it talks to its own process.
func clientFor(c *rest.Config) (*kubernetes.Clientset, error) {
	c = rest.CopyConfig(c)
	c.QPS = -1
	return kubernetes.NewForConfig(c)
}

// retryStart repeats a step while the server is coming up: its namespaces are made by another hook.
func retryStart(ctx context.Context, step func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // the hook as a whole is repeated
	defer cancel()
	pauses := retry.Backoff{First: 20 * time.Millisecond, Limit: time.Second}
	return retry.Do(ctx, pauses, nil, func(context.Context) error { return step() })
}
