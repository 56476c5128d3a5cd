package containerd

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/containerd/plugin"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// pauseImage is the image of every pod's sandbox container. It is created from the embedded pause program and never
// pulled.
const pauseImage = "umiak.io/pause:1"

// pinnedLabel, with the value pinnedValue, protects an image from the kubelet's image garbage collection.
const (
	pinnedLabel = "io.cri-containerd.pinned"
	pinnedValue = "pinned"
	// managedLabel, with the value managedValue, marks images that the CRI service lists.
	managedLabel = "io.cri-containerd.image"
	managedValue = "managed"
)

// platform is this machine's platform, such as linux/arm64.
func platform() string { return platforms.Format(platforms.DefaultSpec()) }

// ensurePause creates and unpacks the pause image. It must run before the CRI service lists the images.
func ensurePause(ic *plugin.InitContext, program, snapshotter string) error {
	bin, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	img, err := newPause(bin, platforms.DefaultSpec())
	if err != nil {
		return err
	}
	c, err := client.New("", client.WithInMemoryServices(ic), client.WithDefaultNamespace(Namespace),
		client.WithDefaultPlatform(platforms.Default()))
	if err != nil {
		return err
	}
	if err := defaultSnapshotter(ic.Context, c, snapshotter); err != nil {
		return err
	}
	ctx, release, err := c.WithLease(namespaces.WithNamespace(ic.Context, Namespace))
	if err != nil {
		return err
	}
	defer func() { _ = release(context.WithoutCancel(ctx)) }()
	return img.put(ctx, c, snapshotter)
}

// defaultSnapshotter records the snapshotter in a label of the kubelet's namespace, where containerd's clients (ctr,
// nerdctl, agent/runtime/images) look for it.
func defaultSnapshotter(ctx context.Context, c *client.Client, name string) error {
	ns := c.NamespaceService()
	if err := ns.Create(ctx, Namespace, nil); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	if l, err := ns.Labels(ctx, Namespace); err != nil || l[defaults.DefaultSnapshotterNSLabel] == name {
		return err
	}
	return ns.SetLabel(ctx, Namespace, defaults.DefaultSnapshotterNSLabel, name)
}

// blob is one blob of an image with its descriptor.
type blob struct {
	desc ocispec.Descriptor
	data []byte
}

// pause is the pause image: one layer with one file. The same program gives the same digests.
type pause struct{ layer, config, manifest blob }

func newPause(program []byte, p ocispec.Platform) (pause, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	// Writing to memory does not fail.
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "pause", Mode: 0o555, Size: int64(len(program)),
		ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR})
	_, _ = w.Write(program)
	_ = w.Close()

	var out pause
	out.layer = newBlob(ocispec.MediaTypeImageLayer, layer.Bytes())
	config, err := json.Marshal(ocispec.Image{
		Platform: p,
		Config:   ocispec.ImageConfig{Entrypoint: []string{"/pause"}, User: "65535:65535", WorkingDir: "/"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{out.layer.desc.Digest}},
	})
	if err != nil {
		return out, err
	}
	out.config = newBlob(ocispec.MediaTypeImageConfig, config)
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    out.config.desc,
		Layers:    []ocispec.Descriptor{out.layer.desc},
	})
	if err != nil {
		return out, err
	}
	out.manifest = newBlob(ocispec.MediaTypeImageManifest, manifest)
	return out, nil
}

func newBlob(mediaType string, data []byte) blob {
	return blob{ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}, data}
}

// put stores and unpacks the image under its name and its ID, as a pull would. It does nothing if the image is there.
func (p pause) put(ctx context.Context, c *client.Client, snapshotter string) error {
	labels := map[string]string{pinnedLabel: pinnedValue, managedLabel: managedValue}
	store := c.ImageService()
	got, err := store.Get(ctx, pauseImage)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	want := images.Image{Name: pauseImage, Target: p.manifest.desc, Labels: labels}
	img := client.NewImage(c, want)
	if err == nil && got.Target.Digest == p.manifest.desc.Digest && got.Labels[pinnedLabel] == pinnedValue {
		if ok, err := img.IsUnpacked(ctx, snapshotter); err == nil && ok {
			return nil
		}
	}
	// These labels make containerd's garbage collector keep the blobs that the manifest refers to.
	gc := map[string]map[string]string{
		p.manifest.desc.Digest.String(): {
			"containerd.io/gc.ref.content.config": p.config.desc.Digest.String(),
			"containerd.io/gc.ref.content.l.0":    p.layer.desc.Digest.String(),
		},
	}
	for _, b := range []blob{p.layer, p.config, p.manifest} {
		d := b.desc.Digest.String()
		if err := content.WriteBlob(ctx, c.ContentStore(), "umiak-"+d, bytes.NewReader(b.data), b.desc,
			content.WithLabels(gc[d])); err != nil {
			return err
		}
	}
	for _, name := range []string{pauseImage, p.config.desc.Digest.String()} {
		want.Name = name
		if _, err := store.Update(ctx, want, "target", "labels"); errdefs.IsNotFound(err) {
			_, err = store.Create(ctx, want)
			if err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
	}
	if err := img.Unpack(ctx, snapshotter); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}
