package imageshare

import (
	"encoding/json"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifestSize bounds a manifest in bytes; containerd has the same limit for registries.
const maxManifestSize = 4 << 20

// manifestTypes are the media types that an image's name may refer to.
var manifestTypes = []string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest,
	images.MediaTypeDockerSchema2ManifestList, images.MediaTypeDockerSchema2Manifest,
}

// mediaType returns the media type of a manifest, false for other blobs: containerd stores blobs without their type.
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
		return ocispec.MediaTypeImageIndex, true // OCI's mediaType field is optional
	case m.Manifests == nil && m.Layers != nil && m.Config != nil:
		return ocispec.MediaTypeImageManifest, true
	}
	return "", false
}
