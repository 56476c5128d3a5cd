package imageshare

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const (
	// uploads bounds the blobs that a node gives at once. A node that asks then asks another one, or again.
	uploads = 8
	// searches bounds how many requests at once read manifests to find out whether an image refers to a blob. Others wait
	// for searchTime, which leaves time to answer within askTime.
	searches   = 2
	searchTime = time.Second
	// stalled is how long a transfer may stand still.
	stalled = 30 * time.Second
)

// handler answers other nodes from this node's store, and from nothing else.
type handler struct {
	store Store
	// names says whether this node may say what a tag stands for.
	names func() bool
	slots chan struct{} // one entry an upload, see uploads
	looks chan struct{} // one entry a search, see searches
	count *counters
}

func newHandler(s Store, names func() bool, c *counters) *handler {
	return &handler{store: s, names: names, slots: make(chan struct{}, uploads), looks: make(chan struct{}, searches), count: c}
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED")
		return
	}
	if r.URL.Path == root {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{}")
		return
	}
	want, ok := parseURL(r.URL)
	if !ok || want.tag != "" && !h.names() {
		refuse(w, http.StatusNotFound, "NAME_UNKNOWN")
		return
	}
	var err error
	if want.kind == blobs {
		err = h.blob(w, r, want)
	} else {
		err = h.manifest(w, r, want)
	}
	switch {
	case err == nil:
	case errors.Is(err, errBusy):
		h.count.refused.Add(1)
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusServiceUnavailable, "TOOMANYREQUESTS")
	case errdefs.IsNotFound(err):
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN")
	default:
		refuse(w, http.StatusInternalServerError, "UNKNOWN")
	}
}

func (h *handler) manifest(w http.ResponseWriter, r *http.Request, want want) error {
	d := want.digest
	if want.tag != "" {
		var err error
		if d, err = h.store.Image(r.Context(), want.image()); err != nil {
			return err
		}
	} else if _, err := h.of(r.Context(), want); err != nil {
		return err
	}
	raw, err := h.small(r.Context(), d)
	if err != nil {
		return err
	}
	t, ok := mediaType(raw)
	if !ok {
		return fmt.Errorf("%s is no manifest: %w", d, errdefs.ErrNotFound)
	}
	w.Header().Set("Content-Type", t)
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	w.Header().Set("Docker-Content-Digest", d.String())
	if r.Method == http.MethodGet {
		conn := http.NewResponseController(w)
		_ = conn.SetWriteDeadline(time.Now().Add(stalled)) // for a client that does not read; there is one over TCP
		_, _ = w.Write(raw)
		_ = conn.SetWriteDeadline(time.Time{})
		h.count.gave(int64(len(raw)))
	}
	return nil
}

// small reads a blob that may be a manifest.
func (h *handler) small(ctx context.Context, d digest.Digest) ([]byte, error) {
	info, err := h.store.Info(ctx, d)
	if err != nil {
		return nil, err
	}
	size := info.Size
	if size > largestManifest {
		return nil, fmt.Errorf("%s is too large for a manifest: %w", d, errdefs.ErrNotFound)
	}
	ra, err := h.store.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer ra.Close() //nolint:errcheck // read only
	raw, err := io.ReadAll(io.NewSectionReader(ra, 0, size))
	if err == nil && d.Algorithm().FromBytes(raw) != d {
		return nil, fmt.Errorf("%s is damaged on this node's disk: %w", d, errdefs.ErrNotFound)
	}
	return raw, err
}

// errBusy means that all places for the work are taken.
var errBusy = errors.New("this node is busy with other nodes' requests")

// blob sends a blob, or the requested part of it. A node whose places are all taken is busy for a HEAD request too, since
// the request for the content follows.
func (h *handler) blob(w http.ResponseWriter, r *http.Request, want want) error {
	d := want.digest
	size, err := h.of(r.Context(), want)
	if err != nil {
		return err
	}
	head := r.Method == http.MethodHead
	if head && len(h.slots) == cap(h.slots) || !head && !enter(h.slots) {
		return errBusy
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("ETag", `"`+d.String()+`"`)
	if head {
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		return nil
	}
	defer func() { <-h.slots }()
	ra, err := h.store.Open(r.Context(), d)
	if err != nil {
		return err
	}
	defer ra.Close() //nolint:errcheck // read only
	conn := http.NewResponseController(w)
	b := &blob{r: ra, size: size, before: func() error { return conn.SetWriteDeadline(time.Now().Add(stalled)) }}
	// What cannot be read to its end, because it was removed, is cut off: its length was said.
	http.ServeContent(w, r, "", time.Time{}, b)
	// The connection is kept for the next request, for which there is no deadline.
	_ = conn.SetWriteDeadline(time.Time{})
	h.count.gave(b.taken)
	return nil
}

// enter takes a place, if there is one.
func enter(places chan struct{}) bool {
	select {
	case places <- struct{}{}:
		return true
	default:
		return false
	}
}

// refuse answers with an error as the protocol has it.
func refuse(w http.ResponseWriter, status int, code string) {
	for _, k := range []string{"Content-Length", "Docker-Content-Digest", "ETag"} {
		w.Header().Del(k)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": http.StatusText(status)}}})
}
