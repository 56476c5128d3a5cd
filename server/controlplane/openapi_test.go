package controlplane

import "testing"

func TestMediaType(t *testing.T) {
	for accept, want := range map[string]string{
		"":                 mediaJSON,
		"*/*":              mediaJSON,
		"application/json": mediaJSON,
		"application/com.github.proto-openapi.spec.v3.v1.0+protobuf": mediaProto,
		"application/com.github.proto-openapi.spec.v3@v1.0+protobuf": mediaProto,
		"text/html;q=0.9, application/json;q=0.1":                    mediaJSON,
		"application/xml": "",
	} {
		if got := mediaType(accept); got != want {
			t.Errorf("%q: got %q, want %q", accept, got, want)
		}
	}
}
