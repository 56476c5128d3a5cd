package join

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/umiak-io/umiak/internal/token"
)

func TestTaintsOfTheSettingsComeAndGoAndThoseOfOthersStay(t *testing.T) {
	taint := func(key, value string) corev1.Taint {
		return corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffectNoSchedule}
	}
	others := taint("admin", "x")
	client := fake.NewClientset(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{others}}},
		nodeSecret("n1", "password", "", token.Agent))
	tokens := Tokens{Client: client}
	for i, step := range []struct{ set, want []corev1.Taint }{
		{nil, []corev1.Taint{others}},
		{[]corev1.Taint{taint("a", "1"), taint("b", "")}, []corev1.Taint{others, taint("a", "1"), taint("b", "")}},
		{[]corev1.Taint{taint("a", "2")}, []corev1.Taint{others, taint("a", "2")}},
		{[]corev1.Taint{taint("a", "2"), taint("admin", "x")}, []corev1.Taint{others, taint("a", "2")}},
		{nil, nil}, // the settings have named the other's as well
	} {
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
	}
	if err := checkTaints([]corev1.Taint{{Key: "a b", Effect: corev1.TaintEffectNoSchedule}}); err == nil {
		t.Error("accepted")
	}
	if err := checkTaints([]corev1.Taint{{Key: "a"}}); err == nil {
		t.Error("accepted without an effect")
	}
}
