package nodeobject

import (
	"encoding/json"
	"net/netip"
	"reflect"
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

func TestExternalAddressesStandBehindInternalOnes(t *testing.T) {
	addr := func(kind corev1.NodeAddressType, a string) corev1.NodeAddress {
		return corev1.NodeAddress{Type: kind, Address: a}
	}
	in, host := addr(corev1.NodeInternalIP, "10.0.0.1"), addr(corev1.NodeHostName, "n1")
	want := []corev1.NodeAddress{in, addr(corev1.NodeExternalIP, "203.0.113.1"),
		addr(corev1.NodeExternalIP, "2001:db8::1"), host}
	for _, there := range [][]corev1.NodeAddress{{in, host}, want,
		{in, addr(corev1.NodeExternalIP, "203.0.113.9"), host}} {
		if got := withExternal(there, []netip.Addr{netip.MustParseAddr("203.0.113.1"),
			netip.MustParseAddr("2001:db8::1")}); !reflect.DeepEqual(got, want) {
			t.Errorf("%v: %v", there, got)
		}
	}
}
