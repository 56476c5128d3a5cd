package imageshare

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const sum = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func decode(raw []byte, v any) error { return json.Unmarshal(raw, v) }

func TestParse(t *testing.T) {
	for path, want := range map[string]want{
		"/v2/library/nginx/manifests/1.2": {registry: "r:5000", repository: "library/nginx",
			kind: manifests, tag: "1.2"},
		"/v2/app/manifests/" + sum: {registry: "r:5000", repository: "app", kind: manifests,
			digest: sum},
		"/v2/a/b/c/blobs/" + sum: {registry: "r:5000", repository: "a/b/c", kind: blobs,
			digest: sum},
		"/v2/a/manifests/b/blobs/" + sum: {registry: "r:5000", repository: "a/manifests/b",
			kind: blobs, digest: sum},
		"/v2/x/blobs/1":                                      {},
		"/v2/x/tags/list":                                    {},
		"/v2/x/blobs/uploads/":                               {},
		"/v2/X/manifests/1":                                  {},
		"/v2/../x/manifests/1":                               {},
		"/v2//manifests/1":                                   {},
		"/v2/x//manifests/1":                                 {},
		"/v2/x/manifests/":                                   {},
		"/v2/x/manifests/..":                                 {},
		"/v2/x/manifests/sha256:00":                          {},
		"/v2/x/blobs/" + strings.ToUpper(sum):                {},
		"/v1/x/manifests/1":                                  {},
		"/v2/manifests/1":                                    {},
		"/v2/x/manifests/" + strings.Repeat("a", 129):        {},
		"/v2/" + strings.Repeat("a/", 200) + "x/manifests/1": {},
	} {
		got, ok := parse("r:5000", root, path)
		if ok != (want.kind != "") || ok && got != want {
			t.Errorf("%s: %+v, %v", path, got, ok)
		}
	}
	for _, r := range []string{"", "a b", "a/b", "../x", "a:b", "a@b", strings.Repeat("a", 256)} {
		if _, ok := parse(r, root, "/v2/x/manifests/1"); ok {
			t.Errorf("registry %q", r)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"/v2/a/manifests/1?ns=docker.io", "/v2/a/b/blobs/" + sum + "?ns=r:5000",
		"/v2/%2e%2e/manifests/1?ns=x", "/v2/a/manifests/1?ns=x&ns=y", "?", "/v2/a/manifests/1?ns=[::1]:5000"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		u, err := url.Parse(in)
		if err != nil {
			return
		}
		w, ok := parseURL(u)
		if !ok {
			return
		}
		if (w.tag == "") == (w.digest == "") || strings.Contains("/"+w.repository+"/", "/../") || w.kind != manifests &&
			w.kind != blobs {
			t.Fatalf("%q: %+v", in, w)
		}
		// What one node asks, the other understands.
		again, err := url.Parse(w.url("n1:5001"))
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := parseURL(again); !ok || got != w {
			t.Fatalf("%q: %+v is %+v at the other end", in, w, got)
		}
	})
}

func TestMediaType(t *testing.T) {
	for in, want := range map[string]string{
		`{"mediaType":"` + ocispec.MediaTypeImageIndex + `"}`:           ocispec.MediaTypeImageIndex,
		`{"mediaType":"` + images.MediaTypeDockerSchema2Manifest + `"}`: images.MediaTypeDockerSchema2Manifest,
		`{"schemaVersion":2,"manifests":[]}`:                            ocispec.MediaTypeImageIndex,
		`{"schemaVersion":2,"config":{},"layers":[]}`:                   ocispec.MediaTypeImageManifest,
		`{"mediaType":"` + images.MediaTypeDockerSchema1Manifest + `"}`: "",
		`{"config":{},"layers":[],"manifests":[]}`:                      "",
		`{"os":"linux","config":{}}`:                                    "",
		`{"mediaType":"text/html"}`:                                     "",
		`<html>`:                                                        "", ``: "", `[]`: "", `{"mediaType":1}`: "",
	} {
		got, ok := mediaType([]byte(in))
		if ok != (want != "") || ok && got != want {
			t.Errorf("%s: %s, %v", in, got, ok)
		}
	}
}

func FuzzMediaType(f *testing.F) {
	f.Add([]byte(`{"mediaType":"` + ocispec.MediaTypeImageIndex + `"}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		if got, ok := mediaType(in); ok && !images.IsManifestType(got) && !images.IsIndexType(got) {
			t.Fatalf("%q is %q", in, got)
		}
	})
}
