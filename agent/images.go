package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/umiak-io/umiak/agent/kubelet"
	"github.com/umiak-io/umiak/agent/kubelet/pullrecords"
	"github.com/umiak-io/umiak/agent/runtime/images"
	"github.com/umiak-io/umiak/internal/status"
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

func (a *Agent) imageRows(context.Context) status.Section {
	out := status.Section{Name: "Image archives"}
	for _, i := range a.images.Status() {
		out.Rows = append(out.Rows, status.Row{Name: i.File, State: string(i.State), Detail: detail(i)})
	}
	return out
}

func (a *Agent) sharingRows(ctx context.Context) status.Section {
	if !a.cfg.ImageSharing {
		return status.Section{Name: "Image sharing", Rows: []status.Row{{Name: "neighbours", State: "off", Detail: "image-sharing: false"}}}
	}
	return a.share.Status(ctx)
}

// detail is what the state alone does not say of an archive.
func detail(i images.Status) string {
	switch {
	case i.Error != "":
		return i.Error
	case i.State == images.Importing:
		return fmt.Sprintf("%d of %d MB", i.Read>>20, i.Size>>20)
	}
	return strings.Join(i.Images, ", ")
}
