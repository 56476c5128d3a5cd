package joinapi

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
)

func TestDecode(t *testing.T) {
	for body, good := range map[string]bool{
		`{"name":"n"}`: true, ` {"name":"n"} ` + "\n": true,
		``: false, `[]`: false, `{"name":1}`: false, `{"name":"n"}{}`: false, `{"name":"n"}x`: false, `{"nam":"n"}`: false,
		`{"name":"` + strings.Repeat("n", MaxBody) + `"}`: false,
	} {
		var r NodeRequest
		if err := Decode(strings.NewReader(body), &r); (err == nil) != good {
			t.Errorf("%.40q: %v", body, err)
		}
	}
}

func TestAnswersMaySayMore(t *testing.T) {
	var r NodeResponse
	if err := DecodeAnswer(strings.NewReader(`{"serverCA":"x","later":1}`), &r); err != nil || r.ServerCA != "x" {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"name":"n","ips":["10.0.0.1"],"password":"p","kubelet":"","agent":"","serving":""}`))
	f.Fuzz(func(_ *testing.T, raw []byte) {
		_ = Decode(bytes.NewReader(raw), &NodeRequest{})
		_ = DecodeAnswer(bytes.NewReader(raw), &NodeResponse{})
	})
}

func TestServers(t *testing.T) {
	https, other, port := "https", "metrics", int32(6443)
	got := Servers([]discoveryv1.EndpointSlice{
		{Ports: []discoveryv1.EndpointPort{{Name: &https, Port: &port}, {Name: &other, Port: new(int32)}}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.2"}}, {Addresses: []string{"10.0.0.1"}}}},
		{Ports: []discoveryv1.EndpointPort{{Name: &https, Port: &port}}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"fd00::1"}}, {Addresses: []string{"10.0.0.1"}}}},
	})
	if want := []string{"10.0.0.1:6443", "10.0.0.2:6443", "[fd00::1]:6443"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
