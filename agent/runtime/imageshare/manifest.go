package imageshare

import (
	"encoding/json"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// largestManifest is what containerd takes of any registry.
const largestManifest = 4 << 20

// manifestTypes are what names of images stand for.
var manifestTypes = []string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest,
	images.MediaTypeDockerSchema2ManifestList, images.MediaTypeDockerSchema2Manifest,
}

// mediaType says what a blob is, if it is a manifest: containerd keeps blobs without their type.
func mediaType(raw []byte) (string, bool) {
	var m struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Layers    json.RawMessage `json:"layers"`
		Config    json.RawMessage `json:"config"`
	}
	if json.Unmarshal(raw, &m) != nil {
		return "", false
	}
	switch {
	case m.MediaType != "":
		return m.MediaType, slices.Contains(manifestTypes, m.MediaType)
	case m.Manifests != nil && m.Layers == nil && m.Config == nil:
		return ocispec.MediaTypeImageIndex, true // which need not say so
	case m.Manifests == nil && m.Layers != nil && m.Config != nil:
		return ocispec.MediaTypeImageManifest, true
	}
	return "", false
}
