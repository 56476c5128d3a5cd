package imageshare

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Bounds of the search for an image of a repository that refers to a blob. The search reads manifests from the disk.
const (
	maxManifests     = 1000
	maxManifestBytes = 64 << 20 // of all manifests that one search reads
)

// sizeIn returns the size of a blob that belongs to the requested repository. Other blobs are not found: otherwise,
// whoever knows the digest of a private image could get it under the name of their own registry.
func (h *handler) sizeIn(ctx context.Context, want want) (size int64, err error) {
	info, err := h.store.Info(ctx, want.digest)
	if err != nil {
		return 0, err
	}
	if pulledFrom(info.Labels, want) {
		return info.Size, nil
	}
	// Imported content has no such label, nor has content that was pulled for another image.
	ok, err := h.refers(ctx, want)
	if err == nil && !ok {
		err = fmt.Errorf("%s is not part of an image of %s: %w", want.digest, want.place(), errdefs.ErrNotFound)
	}
	return info.Size, err
}

// pulledFrom reports whether containerd's labels record that a blob was pulled from a repository. The labels omit the
// registry's port.
func pulledFrom(recorded map[string]string, want want) bool {
	u, err := url.Parse("dummy://" + want.registry)
	if err != nil {
		return false
	}
	return slices.Contains(strings.Split(recorded[labels.LabelDistributionSource+"."+u.Hostname()], ","),
		want.repository)
}

// search takes a slot for reading manifests, which the caller releases with leave.
func (h *handler) search(ctx context.Context) (leave func(), err error) {
	wait := time.NewTimer(searchTimeout)
	defer wait.Stop()
	select {
	case h.searches <- struct{}{}:
		return func() { <-h.searches }, nil
	case <-wait.C:
		return nil, errBusy
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// refers reports whether an image of the repository refers to a blob. The error is errBusy while other requests search.
func (h *handler) refers(ctx context.Context, want want) (bool, error) {
	leave, err := h.search(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	todo, err := h.store.Images(ctx, want.place())
	if err != nil {
		return false, err
	}
	seen := map[digest.Digest]bool{}
	total := 0
	for len(todo) > 0 && len(seen) < maxManifests && total < maxManifestBytes {
		d := todo[0]
		todo = todo[1:]
		if d == want.digest {
			return true, nil
		}
		if seen[d] {
			continue
		}
		seen[d] = true
		raw, err := h.small(ctx, d)
		if errdefs.IsNotFound(err) {
			continue // such as another platform's manifest
		}
		if err != nil {
			return false, err
		}
		total += len(raw)
		manifests, parts := children(raw)
		if slices.Contains(parts, want.digest) {
			return true, nil
		}
		todo = append(todo, manifests[:min(len(manifests), maxManifests)]...)
	}
	return false, nil
}

// children returns the manifests and the other blobs to which a manifest or an index refers.
func children(raw []byte) (manifests, parts []digest.Digest) {
	type descriptor struct {
		Digest digest.Digest `json:"digest"`
	}
	var m struct {
		Manifests []descriptor `json:"manifests"`
		Layers    []descriptor `json:"layers"`
		Config    *descriptor  `json:"config"`
	}
	if json.Unmarshal(raw, &m) != nil {
		return nil, nil
	}
	for _, d := range m.Manifests {
		manifests = append(manifests, d.Digest)
	}
	if m.Config != nil {
		parts = append(parts, m.Config.Digest)
	}
	for _, d := range m.Layers {
		parts = append(parts, d.Digest)
	}
	return manifests, parts
}
