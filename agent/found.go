package agent

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/umiak-io/umiak/agent/images"
	"github.com/umiak-io/umiak/agent/kubelet"
	"github.com/umiak-io/umiak/agent/kubelet/pullrecords"
)

// found is the node's store of images as the kubelet's records of pulls see it.
type found struct {
	*images.Finder

	mu  sync.Mutex
	ids map[digest.Digest]string // see images.Finder.Contents
}

var _ kubelet.Images = (*found)(nil)

// All implements kubelet.Images.
func (f *found) All(ctx context.Context) ([]pullrecords.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all, err := f.Contents(ctx, f.ids)
	out := make([]pullrecords.Image, len(all))
	for i, c := range all {
		out[i] = pullrecords.Image(c)
	}
	return out, err
}
