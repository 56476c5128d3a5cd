package nodeobject

import (
	"encoding/json"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/internal/wellknown"
)

func TestLabelsOfTheSettingsComeAndGoAndThoseOfOthersStay(t *testing.T) {
	type m = map[string]string
	for name, c := range map[string]struct {
		labels m
		had    string
		want   m
		patch  string
	}{
		"first": {m{"a": "1"}, "", m{"a": "1"},
			`{"metadata":{"annotations":{"umiak.io/set-labels":"{\"a\":\"1\"}"},"labels":{}}}`},
		"nothing":  {m{"x": "y"}, "", nil, ""},
		"the same": {m{"a": "1"}, `{"a":"1"}`, m{"a": "1"}, ""},
		"another value": {m{"a": "1"}, `{"a":"1"}`, m{"a": "2"},
			`{"metadata":{"annotations":{"umiak.io/set-labels":"{\"a\":\"2\"}"},"labels":{"a":"2"}}}`},
		"taken out": {m{"a": "1", "x": "y"}, `{"a":"1"}`, nil,
			`{"metadata":{"annotations":{"umiak.io/set-labels":null},"labels":{"a":null}}}`},
		"taken out, but changed": {m{"a": "kubectl"}, `{"a":"1"}`, nil,
			`{"metadata":{"annotations":{"umiak.io/set-labels":null},"labels":{}}}`},
		"changed by somebody": {m{"a": "kubectl"}, `{"a":"1"}`, m{"a": "1"},
			`{"metadata":{"annotations":{"umiak.io/set-labels":"{\"a\":\"1\"}"},"labels":{"a":"1"}}}`},
		"a record that is broken": {m{"a": "1"}, `{`, nil, ""},
	} {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: c.labels, Annotations: m{wellknown.SetLabels: c.had}}}
		got, err := labelPatch(n, c.want)
		if err != nil || string(got) != c.patch {
			t.Errorf("%s: %s, %v", name, got, err)
		}
		if got != nil && !json.Valid(got) {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestAddressesOfTheSettingsStandBehindInternalOnes(t *testing.T) {
	addr := func(kind corev1.NodeAddressType, a string) corev1.NodeAddress {
		return corev1.NodeAddress{Type: kind, Address: a}
	}
	in, host := addr(corev1.NodeInternalIP, "10.0.0.1"), addr(corev1.NodeHostName, "n1")
	cloud := addr(corev1.NodeInternalDNS, "n1.cloud.example.com")
	own := []corev1.NodeAddress{addr(corev1.NodeExternalIP, "203.0.113.1"), addr(corev1.NodeExternalIP, "2001:db8::1"),
		addr(corev1.NodeExternalDNS, "n1.example.com")}
	want := slices.Concat([]corev1.NodeAddress{in}, own, []corev1.NodeAddress{host, cloud})
	for _, there := range [][]corev1.NodeAddress{{in, host, cloud}, want,
		{in, addr(corev1.NodeExternalIP, "203.0.113.9"), host, cloud}} {
		if got := withOwn(there, own); !reflect.DeepEqual(got, want) {
			t.Errorf("%v: %v", there, got)
		}
	}
	if got := Types(own); !slices.Equal(got, []corev1.NodeAddressType{corev1.NodeExternalIP, corev1.NodeExternalDNS}) {
		t.Errorf("types %v", got)
	}
}
