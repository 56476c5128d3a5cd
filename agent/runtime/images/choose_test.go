package images

import (
	"bytes"
	"encoding/json"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maker makes content for tests of what is chosen from it.
type maker struct {
	t     *testing.T
	store content.Store
	n     byte
}

// blob puts something into the store, or only describes it.
func (m *maker) blob(mediaType string, v any, there bool) ocispec.Descriptor {
	m.t.Helper()
	raw, ok := v.([]byte)
	if !ok {
		var err error
		if raw, err = json.Marshal(v); err != nil {
			m.t.Fatal(err)
		}
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if there {
		if err := content.WriteBlob(m.t.Context(), m.store, d.Digest.String(), bytes.NewReader(raw), d); err != nil {
			m.t.Fatal(err)
		}
	}
	return d
}

// manifest is of an image for a platform. It says so itself, and where it is listed: "listed" or "silent". Its
// "layer" or all of it, "gone", may be missing.
func (m *maker) manifest(platform, how string) ocispec.Descriptor {
	m.t.Helper()
	var p ocispec.Platform
	if platform != "" {
		p = platforms.MustParse(platform)
	}
	m.n++
	there := how != "gone"
	layer := m.blob(ocispec.MediaTypeImageLayer, []byte{m.n}, there && how != "layer")
	config := m.blob(ocispec.MediaTypeImageConfig,
		ocispec.Image{Platform: p, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}}},
		there)
	d := m.blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2},
		Config: config, Layers: []ocispec.Descriptor{layer}}, there)
	if how != "silent" {
		d.Platform = &p
	}
	return d
}

func (m *maker) index(all ...ocispec.Descriptor) ocispec.Descriptor {
	return m.blob(ocispec.MediaTypeImageIndex, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2},
		Manifests: all}, true)
}

func (m *maker) attestation() ocispec.Descriptor {
	d := m.blob(ocispec.MediaTypeImageManifest, []byte("attestation"), false)
	d.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	return d
}

func TestChoose(t *testing.T) {
	for name, c := range map[string]struct {
		machine string
		make    func(m *maker) (descs []ocispec.Descriptor, leaf, target ocispec.Descriptor)
		err     string
	}{
		"others are listed and not there": {"linux/amd64",
			func(m *maker) ([]ocispec.Descriptor, ocispec.Descriptor, ocispec.Descriptor) {
				own := m.manifest("linux/amd64", "listed")
				i := m.index(m.manifest("linux/386", "gone"), m.manifest("linux/arm64", "gone"), own, m.attestation())
				return []ocispec.Descriptor{i}, own, i
			}, ""},
		"flat": {"linux/amd64", func(m *maker) ([]ocispec.Descriptor, ocispec.Descriptor, ocispec.Descriptor) {
			own := m.manifest("linux/amd64", "listed")
			return []ocispec.Descriptor{own, m.manifest("linux/arm64", "listed")}, own, own
		}, ""},
		"flat, the other way round": {"linux/arm64",
			func(m *maker) ([]ocispec.Descriptor, ocispec.Descriptor, ocispec.Descriptor) {
				own := m.manifest("linux/arm64", "listed")
				return []ocispec.Descriptor{own, m.manifest("linux/amd64", "listed")}, own, own
			}, ""},
		"flat, a later one is newer": {"linux/amd64",
			func(m *maker) ([]ocispec.Descriptor, ocispec.Descriptor, ocispec.Descriptor) {
				old, own := m.manifest("linux/amd64", "listed"), m.manifest("linux/amd64", "listed")
				return []ocispec.Descriptor{old, own}, own, own
			}, ""},
		"an index within an index": {"linux/amd64",
			func(m *maker) ([]ocispec.Descriptor, ocispec.Descriptor, ocispec.Descriptor) {
				own := m.manifest("linux/amd64", "listed")
				i := m.index(m.index(m.manifest("linux/s390x", "gone"), own))
				return []ocispec.Descriptor{i}, own, i
			}, ""},
		"the configuration alone says what it is for": {"linux/amd64",
			func(m *maker) ([]ocispec.Descriptor, ocispec.Descriptor, ocispec.Descriptor) {
				other, own := m.manifest("linux/arm64", "silent"), m.manifest("linux/amd64", "silent")
				return []ocispec.Descriptor{other, own}, own, own
			}, ""},
		"nothing says what it is for": {"linux/amd64",
			func(m *maker) ([]ocispec.Descriptor, ocispec.Descriptor, ocispec.Descriptor) {
				own := m.manifest("", "silent")
				return []ocispec.Descriptor{own}, own, own
			}, ""},
		"only for others": {"linux/amd64", func(m *maker) ([]ocispec.Descriptor,
			ocispec.Descriptor, ocispec.Descriptor) {
			return []ocispec.Descriptor{m.index(m.manifest("linux/arm64", "listed"), m.manifest("linux/arm/v7", "gone"),
				m.attestation())}, ocispec.Descriptor{}, ocispec.Descriptor{}
		}, "it is for linux/arm/v7, linux/arm64, not for linux/amd64"},
		"only for another, and no index": {"linux/amd64",
			func(m *maker) ([]ocispec.Descriptor, ocispec.Descriptor, ocispec.Descriptor) {
				return []ocispec.Descriptor{m.manifest("linux/arm64", "silent")}, ocispec.Descriptor{},
					ocispec.Descriptor{}
			}, "it is for linux/arm64, not for linux/amd64"},
		"386 is not amd64": {"linux/amd64", func(m *maker) ([]ocispec.Descriptor,
			ocispec.Descriptor, ocispec.Descriptor) {
			return []ocispec.Descriptor{m.manifest("linux/386", "listed")}, ocispec.Descriptor{}, ocispec.Descriptor{}
		}, "it is for linux/386, not for linux/amd64"},
		"windows is not linux": {"linux/amd64", func(m *maker) ([]ocispec.Descriptor,
			ocispec.Descriptor, ocispec.Descriptor) {
			return []ocispec.Descriptor{m.manifest("windows/amd64", "listed")}, ocispec.Descriptor{},
				ocispec.Descriptor{}
		}, "it is for windows/amd64"},
		"a layer is missing": {"linux/amd64", func(m *maker) ([]ocispec.Descriptor,
			ocispec.Descriptor, ocispec.Descriptor) {
			return []ocispec.Descriptor{m.index(m.manifest("linux/amd64", "layer"))}, ocispec.Descriptor{},
				ocispec.Descriptor{}
		}, "the archive lacks content for linux/amd64"},
		"its own manifest is missing": {"linux/amd64",
			func(m *maker) ([]ocispec.Descriptor, ocispec.Descriptor, ocispec.Descriptor) {
				return []ocispec.Descriptor{m.index(m.manifest("linux/amd64", "gone"),
					m.manifest("linux/arm64", "listed"))}, ocispec.Descriptor{}, ocispec.Descriptor{}
			}, "the archive lacks content for linux/amd64"},
		"arm64 also runs arm": {"linux/arm64", func(m *maker) ([]ocispec.Descriptor,
			ocispec.Descriptor, ocispec.Descriptor) {
			own := m.manifest("linux/arm/v7", "listed")
			i := m.index(m.manifest("linux/amd64", "listed"), own)
			return []ocispec.Descriptor{i}, own, i
		}, ""},
		"arm64 takes its own before arm": {"linux/arm64",
			func(m *maker) ([]ocispec.Descriptor, ocispec.Descriptor, ocispec.Descriptor) {
				own := m.manifest("linux/arm64/v8", "listed")
				i := m.index(m.manifest("linux/arm/v7", "listed"), own)
				return []ocispec.Descriptor{i}, own, i
			}, ""},
		"armv7 takes what is for armv6 where that for armv7 is not there, and containerd must not look for it": {"linux/arm/v7", func(m *maker) ([]ocispec.Descriptor, ocispec.Descriptor, ocispec.Descriptor) {
			own := m.manifest("linux/arm/v6", "listed")
			return []ocispec.Descriptor{m.index(m.manifest("linux/arm/v7", "gone"), own)}, own, own
		}, ""},
		"armv6 does not run armv7": {"linux/arm/v6",
			func(m *maker) ([]ocispec.Descriptor, ocispec.Descriptor, ocispec.Descriptor) {
				return []ocispec.Descriptor{m.manifest("linux/arm/v7", "listed")}, ocispec.Descriptor{},
					ocispec.Descriptor{}
			}, "it is for linux/arm/v7, not for linux/arm/v6"},
		"no image": {"linux/amd64", func(m *maker) ([]ocispec.Descriptor, ocispec.Descriptor, ocispec.Descriptor) {
			return []ocispec.Descriptor{m.index(m.attestation())}, ocispec.Descriptor{}, ocispec.Descriptor{}
		}, "no runnable image"},
	} {
		t.Run(name, func(t *testing.T) {
			store, err := local.NewStore(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			descs, leaf, target := c.make(&maker{t: t, store: store})
			got, err := named{"x:1", descs}.choose(t.Context(), store,
				platforms.Normalize(platforms.MustParse(c.machine)))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.leaf.Digest != leaf.Digest || got.target.Digest != target.Digest {
				t.Errorf("chose %s in %s, want %s in %s", got.leaf.Digest, got.target.Digest, leaf.Digest,
					target.Digest)
			}
		})
	}
	if p := platforms.DefaultSpec(); p.Architecture != runtime.GOARCH {
		t.Errorf("this machine is %s", platforms.Format(p))
	}
}
