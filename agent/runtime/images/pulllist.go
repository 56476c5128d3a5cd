package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/umiak-io/umiak/internal/retry"
)

// listSuffix is the ending of a pull list's name: a text file of the folder with one image in each line.
const listSuffix = ".txt"

// maxListSize bounds the size of a pull list in bytes.
const maxListSize = 1 << 20

// Bounds of the pause after which the images of a list that could not be pulled are tried again.
const (
	minPullPause = 10 * time.Second
	maxPullPause = 5 * time.Minute
)

// isPullList reports whether the name is that of a pull list.
func isPullList(name string) bool {
	return !strings.HasPrefix(name, ".") && len(name) > len(listSuffix) &&
		strings.HasSuffix(strings.ToLower(name), listSuffix)
}

// parsePullList returns the full names of the images in a list, each once. Empty lines and lines that begin with # do
// not count. The error names the lines that are no image's name.
func parsePullList(text string) (names []string, err error) {
	var errs []error
	n := 0
	for line := range strings.Lines(strings.TrimPrefix(text, "\ufeff")) {
		n++
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		ref, err := reference.ParseDockerRef(line)
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %.100q is not the name of an image", n, line))
			continue
		}
		if name := ref.String(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, errors.Join(errs...)
}

// pullLists pulls the images of the folder's lists, one list after the other, through the CRI: with the node's mirrors,
// credentials and image sharing. What fails is tried again with growing pauses.
type pullLists struct {
	queue  *queue
	client *client.Client // nil before Importer.Run

	mu    sync.Mutex
	again map[string]*attempt
}

// attempt is the next attempt at a list of which images are missing.
type attempt struct {
	identity identity // of the list, so that a changed one begins with short pauses
	pauses   retry.Backoff
	timer    *time.Timer
	news     retry.News
}

func newPullLists(c *client.Client) *pullLists {
	return &pullLists{queue: newQueue(), client: c, again: map[string]*attempt{}}
}

// add queues a list.
func (p *pullLists) add(name string) { p.queue.add(name) }

// close ends run and the attempts that wait.
func (p *pullLists) close() {
	p.mu.Lock()
	for _, a := range p.again {
		a.timer.Stop()
	}
	p.mu.Unlock()
	p.queue.close()
}

// run pulls until the queue is closed.
func (p *pullLists) run(ctx context.Context, i *Importer) {
	for name, ok := p.queue.next(); ok; name, ok = p.queue.next() {
		p.pullNamed(ctx, i, name)
		p.queue.done(name)
	}
}

// retryLater queues a list again after a pause, which it returns. news reports that the error differs from the one of
// the attempt before.
func (p *pullLists) retryLater(name string, id identity, err error) (pause time.Duration, news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.again[name]
	if a == nil || a.identity != id {
		a = &attempt{identity: id, pauses: retry.Backoff{First: minPullPause, Limit: maxPullPause, Spread: true}}
		p.again[name] = a
	}
	if a.timer != nil {
		a.timer.Stop()
	}
	pause = a.pauses.Next()
	a.timer = time.AfterFunc(pause, func() { p.queue.add(name) })
	return pause, a.news.Is(err)
}

// forget ends the attempts at a list.
func (p *pullLists) forget(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a := p.again[name]; a != nil {
		a.timer.Stop()
		delete(p.again, name)
	}
}

// pullNamed pulls the images of one list of the queue, and records and logs the result.
func (p *pullLists) pullNamed(ctx context.Context, i *Importer, name string) {
	if ctx.Err() != nil {
		return
	}
	start := time.Now()
	r := p.pullList(ctx, i, name)
	if ctx.Err() != nil {
		return
	}
	if i.isRemoved(name) {
		p.forget(name)
		i.forgetRemoved(ctx, p.client)
		return
	}
	took := time.Since(start).Round(time.Millisecond)
	st := Status{File: name, State: Pulled, Size: r.identity.Size, Images: slices.Sorted(maps.Keys(r.images)), Took: took}
	err := errors.Join(r.bad, r.missing)
	switch {
	case errors.Is(r.bad, fs.ErrNotExist):
		st.State, st.Error = Waiting, "it is a link whose target does not exist"
	case err != nil:
		st.State, st.Error = Failed, err.Error()
	}
	switch {
	case r.missing != nil:
		pause, news := p.retryLater(name, r.identity, err)
		st.Error += "; the next attempt is at " + time.Now().Add(pause).Format(time.TimeOnly)
		if news {
			i.cfg.Log.Error("images of a list not pulled", "file", name, "error", err, "retry", pause.Round(time.Second))
		}
	case st.State == Failed:
		p.forget(name)
		i.cfg.Log.Error("list of images cannot be used", "file", name, "error", err)
	default:
		p.forget(name)
		if len(r.pulled) > 0 {
			i.cfg.Log.Info("images of a list pulled", "file", name, "images", r.pulled, "took", took)
		}
	}
	i.update(name, func(s *Status) { *s = st })
}

// pullResult is what one attempt at a list has led to.
type pullResult struct {
	identity identity          // of the list
	images   map[string]string // the images that are there, with their digests
	pulled   []string          // those that were not there before
	bad      error             // why the list, or a line of it, cannot be used until it is changed
	missing  error             // why images could not be pulled now
}

// pullList pulls the images of a list that the store does not have, pins all of them, and records them.
func (p *pullLists) pullList(ctx context.Context, i *Importer, name string) pullResult {
	r := pullResult{images: map[string]string{}}
	want, id, err := readPullList(i.path(name))
	if r.identity, r.bad = id, err; len(want) == 0 && err != nil {
		return r
	}
	i.mu.Lock()
	before := i.records[name].Images
	i.mu.Unlock()
	recorded := map[string]string{}
	var errs []error
	for n, ref := range want {
		i.update(name, func(s *Status) {
			s.State, s.Images, s.Error = Pulling, slices.Sorted(maps.Keys(r.images)),
				fmt.Sprintf("%s, %d of %d", ref, n+1, len(want))
		})
		digest, fresh, err := p.pull(ctx, ref)
		if err != nil {
			errs = append(errs, fmt.Errorf("pull %s: %w", ref, err))
			if digest, ok := before[ref]; ok { // otherwise record would unpin an image that may well be there
				recorded[ref] = digest
			}
			continue
		}
		r.images[ref], recorded[ref] = digest, digest
		if fresh {
			r.pulled = append(r.pulled, ref)
		}
	}
	if ctx.Err() == nil { // of images that were not reached, the record stays
		errs = append(errs, i.record(ctx, p.client, name, record{identity: id, imported: imported{Images: recorded}}))
	}
	r.missing = errors.Join(errs...)
	return r
}

// readPullList reads a list. It returns the images of the lines that can be used also with an error.
func readPullList(path string) ([]string, identity, error) {
	f, id, err := open(path)
	if err != nil {
		return nil, identity{}, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	text, err := io.ReadAll(io.LimitReader(f, maxListSize+1))
	if err != nil {
		return nil, id, err
	}
	if len(text) > maxListSize {
		return nil, id, fmt.Errorf("it is larger than %d bytes: a list has one image in each line", maxListSize)
	}
	names, err := parsePullList(string(text))
	return names, id, err
}

// pull returns the digest of an image of the store, which it pins. It pulls the image if the store does not have it.
func (p *pullLists) pull(ctx context.Context, ref string) (digest string, fresh bool, err error) {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	store := p.client.ImageService()
	img, err := store.Get(ctx, ref)
	if errdefs.IsNotFound(err) {
		conn, ok := p.client.Conn().(grpc.ClientConnInterface)
		if !ok {
			return "", false, errors.New("there is no connection to containerd")
		}
		if _, err := cri.NewImageServiceClient(conn).PullImage(ctx,
			&cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
			return "", false, err
		}
		fresh = true
		img, err = store.Get(ctx, ref)
	}
	if err != nil {
		return "", fresh, err
	}
	return img.Target.Digest.String(), fresh, pin(ctx, store, img)
}

// pin pins an image of the store.
func pin(ctx context.Context, store images.Store, img images.Image) error {
	if img.Labels[pinnedLabel] == pinnedValue {
		return nil
	}
	img.Labels = map[string]string{pinnedLabel: pinnedValue}
	_, err := store.Update(ctx, img, "labels."+pinnedLabel)
	return err
}
