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
	// maxUploads bounds how many blobs a node sends at once; further requests get "busy".
	maxUploads = 8
	// maxSearches bounds how many requests at once read manifests to decide whether an image refers to a blob. Others
	// wait for searchTimeout, which is short enough to answer within askTimeout.
	maxSearches   = 2
	searchTimeout = time.Second
	// stallTimeout bounds the time without progress of a transfer.
	stallTimeout = 30 * time.Second
)

// handler answers other nodes from this node's store, and from nothing else.
type handler struct {
	store Store
	// resolvesTags reports whether this node may resolve tags.
	resolvesTags func() bool
	uploads      chan struct{} // one entry per upload; see maxUploads
	searches     chan struct{} // one entry per search; see maxSearches
	count        *counters
}

func newHandler(s Store, resolvesTags func() bool, c *counters) *handler {
	return &handler{store: s, resolvesTags: resolvesTags, uploads: make(chan struct{}, maxUploads),
		searches: make(chan struct{}, maxSearches), count: c}
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
	if !ok || want.tag != "" && !h.resolvesTags() {
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
	} else if _, err := h.sizeIn(r.Context(), want); err != nil {
		return err
	}
	raw, err := h.small(r.Context(), d)
	if err != nil {
		return err
	}
	t, ok := mediaType(raw)
	if !ok {
		return fmt.Errorf("%s is not a manifest: %w", d, errdefs.ErrNotFound)
	}
	w.Header().Set("Content-Type", t)
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	w.Header().Set("Docker-Content-Digest", d.String())
	if r.Method == http.MethodGet {
		conn := http.NewResponseController(w)
		_ = conn.SetWriteDeadline(time.Now().Add(stallTimeout)) // for a client that does not read; there is one over TCP
		_, _ = w.Write(raw)
		_ = conn.SetWriteDeadline(time.Time{})
		h.count.gave(int64(len(raw)))
	}
	return nil
}

// small reads a blob that is small enough for a manifest.
func (h *handler) small(ctx context.Context, d digest.Digest) ([]byte, error) {
	info, err := h.store.Info(ctx, d)
	if err != nil {
		return nil, err
	}
	size := info.Size
	if size > maxManifestSize {
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

// errBusy means that all slots for the work are taken.
var errBusy = errors.New("this node is busy with other nodes' requests")

// blob sends a blob, or the requested range of it. When all upload slots are taken it answers "busy", to HEAD requests
// as well.
func (h *handler) blob(w http.ResponseWriter, r *http.Request, want want) error {
	d := want.digest
	size, err := h.sizeIn(r.Context(), want)
	if err != nil {
		return err
	}
	head := r.Method == http.MethodHead
	if head && len(h.uploads) == cap(h.uploads) || !head && !enter(h.uploads) {
		return errBusy
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("ETag", `"`+d.String()+`"`)
	if head {
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		return nil
	}
	defer func() { <-h.uploads }()
	ra, err := h.store.Open(r.Context(), d)
	if err != nil {
		return err
	}
	defer ra.Close() //nolint:errcheck // read only
	conn := http.NewResponseController(w)
	b := &blob{r: ra, size: size, before: func() error { return conn.SetWriteDeadline(time.Now().Add(stallTimeout)) }}
	// A blob that is removed while it is read is cut off; the client notices by its length.
	http.ServeContent(w, r, "", time.Time{}, b)
	// The connection stays open for the next request: clear the deadline.
	_ = conn.SetWriteDeadline(time.Time{})
	h.count.gave(b.total)
	return nil
}

// enter takes a slot, if one is free.
func enter(slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
		return false
	}
}

// refuse answers with an error in the registry protocol's format.
func refuse(w http.ResponseWriter, status int, code string) {
	for _, k := range []string{"Content-Length", "Docker-Content-Digest", "ETag"} {
		w.Header().Del(k)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(
		map[string]any{"errors": []map[string]string{{"code": code, "message": http.StatusText(status)}}})
}
