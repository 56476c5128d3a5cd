package joinapi

import (
	"errors"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/umiak-io/umiak/internal/token"
)

func TestTaintsOfTheSettingsComeAndGoAndThoseOfOthersStay(t *testing.T) {
	taint := func(key, value string) corev1.Taint {
		return corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffectNoSchedule}
	}
	list := func(l ...corev1.Taint) []corev1.Taint { return l }
	admin, role := taint("admin", "x"), taint("role", "1")
	type step struct{ set, want []corev1.Taint }
	for _, c := range []struct {
		name  string
		there []corev1.Taint
		steps []step
	}{
		{"an administrator's", list(admin), []step{
			{nil, list(admin)},
			{list(taint("a", "1"), taint("b", "")), list(admin, taint("a", "1"), taint("b", ""))},
			{list(taint("a", "2")), list(admin, taint("a", "2"))},
			{list(taint("a", "2"), admin), list(admin, taint("a", "2"))},
			{list(taint("admin", "y")), list(admin)}, // named by the settings as well, and still not theirs
			{nil, list(admin)},
		}},
		{"registered with", list(admin, role), []step{
			{list(role), list(admin, role)},
			{nil, list(admin)},
		}},
		{"registered with another value", list(role), []step{
			{list(taint("role", "2")), list(taint("role", "2"))},
			{nil, nil},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := fake.NewClientset(
				&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{Taints: c.there}},
				nodeSecret("n1", "password", "", token.Agent))
			tokens := Tokens{Client: client}
			for i, step := range c.steps {
				if err := tokens.SetTaints(t.Context(), "n1", step.set); err != nil {
					t.Fatal(err)
				}
				n, err := client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
				if err != nil || !slices.Equal(n.Spec.Taints, step.want) {
					t.Errorf("step %d: %v, %v", i, n.Spec.Taints, err)
				}
				before := len(client.Actions())
				if err := tokens.SetTaints(t.Context(), "n1", step.set); err != nil {
					t.Fatal(err)
				}
				for _, a := range client.Actions()[before:] {
					if a.GetVerb() != "get" {
						t.Errorf("step %d: the same again does %s", i, a.GetVerb())
					}
				}
				secret, err := client.CoreV1().Secrets(Namespace).Get(t.Context(), "n1"+nodeSuffix, metav1.GetOptions{})
				if raw := string(secret.Data[keyTaints]); err != nil || step.set == nil && raw != "[]" ||
					raw == "null" {
					t.Errorf("step %d: the record is %q, %v", i, raw, err)
				}
			}
		})
	}
}

func TestATaintThatAnAdministratorSetsDuringACallIsTheirs(t *testing.T) {
	a := corev1.Taint{Key: "a", Effect: corev1.TaintEffectNoSchedule}
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}},
		nodeSecret("n1", "password", "", token.Agent))
	tokens := Tokens{Client: client}
	if err := tokens.SetTaints(t.Context(), "n1", nil); err != nil {
		t.Fatal(err)
	}
	raced := false
	client.PrependReactor("update", "nodes", func(k8stesting.Action) (bool, runtime.Object, error) {
		if raced {
			return false, nil, nil
		}
		raced = true
		admins := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"},
			Spec: corev1.NodeSpec{Taints: []corev1.Taint{a}}}
		if err := client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("nodes"), admins, ""); err != nil {
			t.Error(err)
		}
		return true, nil, apierrors.NewConflict(corev1.Resource("nodes"), "n1", errors.New("changed"))
	})
	for _, set := range [][]corev1.Taint{{a}, nil} {
		if err := tokens.SetTaints(t.Context(), "n1", set); err != nil {
			t.Fatal(err)
		}
	}
	n, err := client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
	if err != nil || !raced || len(n.Spec.Taints) != 1 {
		t.Errorf("raced %v: %v, %v", raced, n.Spec.Taints, err)
	}
}

func TestCheckTaints(t *testing.T) {
	if err := checkTaints([]corev1.Taint{{Key: "a b", Effect: corev1.TaintEffectNoSchedule}}); err == nil {
		t.Error("accepted")
	}
	if err := checkTaints([]corev1.Taint{{Key: "a"}}); err == nil {
		t.Error("accepted without an effect")
	}
}
