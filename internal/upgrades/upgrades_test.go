package upgrades

import (
	"reflect"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestObject(t *testing.T) {
	u := &Upgrade{ObjectMeta: metav1.ObjectMeta{Name: "cluster", UID: "0123456789"},
		Spec: Spec{Version: "v1.37.2", Attempt: 2,
			NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}}}
	o, err := u.ToUnstructured()
	if err != nil {
		t.Fatal(err)
	}
	back, err := FromUnstructured(o)
	if err != nil || !reflect.DeepEqual(back, u) {
		t.Errorf("got %+v, %v", back, err)
	}
	if u.ID() != "01234567/v1.37.2/2" {
		t.Error(u.ID())
	}
	o.Object["spec"] = "no"
	if _, err := FromUnstructured(o); err == nil {
		t.Error("taken")
	}
}

func FuzzAnnotation(f *testing.F) {
	f.Add(`{"id":"a","version":"v1.2.3","asked":"2026-11-25T00:00:00Z"}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, s string) {
		r, ok := Annotation[Request](map[string]string{AskedFor: s}, AskedFor)
		if !ok && r != (Request{}) {
			t.Errorf("half read: %+v", r)
		}
	})
}
