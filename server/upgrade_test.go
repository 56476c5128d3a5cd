package server_test

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/umiak-io/umiak/internal/upgrades"
)

// asksForUpgrades: who may patch Nodes and their status is nevertheless not to have root run something on them.
func asksForUpgrades(t *testing.T, k kubernetes.Interface, kubeconfig string) {
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const node, user = "asked", "patcher"
	_, err := k.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}},
		metav1.CreateOptions{})
	must(err)
	defer func() { must(k.CoreV1().Nodes().Delete(ctx, node, metav1.DeleteOptions{})) }()
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: user}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"nodes", "nodes/status"},
			Verbs: []string{"get", "patch", "update"}},
	}}
	_, err = k.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{})
	must(err)
	_, err = k.RbacV1().ClusterRoleBindings().Create(ctx,
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: user},
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: user},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}}},
		metav1.CreateOptions{})
	must(err)
	c, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	must(err)
	c.Impersonate = rest.ImpersonationConfig{UserName: user}
	patcher, err := kubernetes.NewForConfig(c)
	must(err)
	patch := func(k kubernetes.Interface, body string, sub ...string) error {
		_, err := k.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, []byte(body), metav1.PatchOptions{}, sub...)
		return err
	}
	ask := `{"metadata":{"annotations":{"` + upgrades.AskedFor + `":"{\"id\":\"x\",\"version\":\"v9\"}"}}}`
	// The authorizer may learn of the role a moment after it is there.
	eventually(t, "the role is in force", func(_ context.Context) error {
		return patch(patcher, `{"metadata":{"annotations":{"other":"yes"}}}`, "status")
	})
	for _, sub := range [][]string{nil, {"status"}} {
		if err := patch(patcher, ask, sub...); !apierrors.IsForbidden(err) {
			t.Errorf("who may patch nodes asked for an upgrade with subresource %v: %v", sub, err)
		}
	}
	must(patch(k, ask))
}
