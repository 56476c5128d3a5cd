package controlplane

import (
	"context"
	"fmt"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// The identities that umiak's own certificates carry besides upstream's.
const (
	KubeletClientUser = "umiak:kubelet-client" // the API server towards kubelets
	FrontProxyUser    = "umiak:front-proxy"    // the API server towards aggregated ones
	AgentsGroup       = "umiak:agents"         // the proxy, DNS and overlay of every node
	AgentUserPrefix   = "umiak:agent:"
)

var label = map[string]string{"app.kubernetes.io/managed-by": "umiak"}

// roles are what umiak's own identities may do.
func roles() []rbacv1.ClusterRole {
	read := []string{"get", "list", "watch"}
	return []rbacv1.ClusterRole{
		{
			ObjectMeta: metav1.ObjectMeta{Name: "umiak:agent", Labels: label},
			Rules: []rbacv1.PolicyRule{
				{APIGroups: []string{""}, Resources: []string{"services", "namespaces", "pods", "nodes"}, Verbs: read},
				{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
				{APIGroups: []string{"networking.k8s.io"}, Resources: []string{"networkpolicies", "servicecidrs"}, Verbs: read},
				{APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}, Verbs: []string{"create", "patch", "update"}},
			},
		},
		{
			ObjectMeta: metav1.ObjectMeta{Name: "umiak:monitoring", Labels: label},
			Rules:      []rbacv1.PolicyRule{{NonResourceURLs: []string{HealthPath}, Verbs: []string{"get"}}},
		},
	}
}

// agentConfigRole lets agents follow the one ConfigMap that is theirs.
func agentConfigRole() rbacv1.Role {
	return rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: "umiak:agent", Namespace: metav1.NamespaceSystem, Labels: label},
		Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{"coredns"}, Verbs: []string{"get", "list", "watch"},
		}},
	}
}

func bindings() []rbacv1.ClusterRoleBinding {
	bind := func(role, kind, subject string) rbacv1.ClusterRoleBinding {
		return rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: subject, Labels: label},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: kind, Name: subject}},
		}
	}
	monitoring := bind("umiak:monitoring", rbacv1.GroupKind, "system:monitoring")
	monitoring.Name = "umiak:monitoring"
	return []rbacv1.ClusterRoleBinding{
		bind("system:kubelet-api-admin", rbacv1.UserKind, KubeletClientUser),
		bind("umiak:agent", rbacv1.GroupKind, AgentsGroup),
		monitoring,
	}
}

// ensureAccess gives umiak's identities their rights, before /readyz is ok. It compares first, so that a
// restart writes nothing.
func ensureAccess(ctx context.Context, c *rest.Config) error {
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		return fmt.Errorf("grant access: %w", err)
	}
	rbac := client.RbacV1()
	var steps []func() error
	for _, want := range roles() {
		steps = append(steps, func() error {
			have, err := rbac.ClusterRoles().Get(ctx, want.Name, metav1.GetOptions{})
			switch {
			case apierrors.IsNotFound(err):
				_, err = rbac.ClusterRoles().Create(ctx, &want, metav1.CreateOptions{})
			case err == nil && !equality.Semantic.DeepEqual(have.Rules, want.Rules):
				have.Rules = want.Rules
				_, err = rbac.ClusterRoles().Update(ctx, have, metav1.UpdateOptions{})
			}
			return err
		})
	}
	for _, want := range bindings() {
		steps = append(steps, func() error {
			have, err := rbac.ClusterRoleBindings().Get(ctx, want.Name, metav1.GetOptions{})
			switch {
			case apierrors.IsNotFound(err):
				_, err = rbac.ClusterRoleBindings().Create(ctx, &want, metav1.CreateOptions{})
			case err == nil && !equality.Semantic.DeepEqual(have.Subjects, want.Subjects):
				have.Subjects = want.Subjects
				_, err = rbac.ClusterRoleBindings().Update(ctx, have, metav1.UpdateOptions{})
			}
			return err
		})
	}
	role := agentConfigRole()
	steps = append(steps, func() error {
		have, err := rbac.Roles(role.Namespace).Get(ctx, role.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			_, err = rbac.Roles(role.Namespace).Create(ctx, &role, metav1.CreateOptions{})
		case err == nil && !equality.Semantic.DeepEqual(have.Rules, role.Rules):
			have.Rules = role.Rules
			_, err = rbac.Roles(role.Namespace).Update(ctx, have, metav1.UpdateOptions{})
		}
		return err
	}, func() error {
		b := rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: role.Name, Namespace: role.Namespace, Labels: label},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role.Name},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: AgentsGroup}},
		}
		if _, err := rbac.RoleBindings(b.Namespace).Get(ctx, b.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return err
		}
		_, err := rbac.RoleBindings(b.Namespace).Create(ctx, &b, metav1.CreateOptions{})
		return err
	})
	for _, step := range steps {
		if err := retry(ctx, step); err != nil {
			return fmt.Errorf("grant access: %w", err)
		}
	}
	return nil
}

// retry repeats a step while the server is coming up: its namespaces are made by another hook.
func retry(ctx context.Context, step func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	wait := 20 * time.Millisecond
	for {
		err := step()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
			wait = min(2*wait, time.Second)
		}
	}
}
