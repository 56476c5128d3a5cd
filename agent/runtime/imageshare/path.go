package imageshare

import (
	"net/url"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Kinds of objects in the registry protocol.
const (
	manifests = "manifests"
	blobs     = "blobs"
)

// want identifies a requested manifest or blob.
type want struct {
	registry   string // as in the image's name: docker.io
	repository string // library/nginx
	kind       string // manifests or blobs
	digest     digest.Digest
	tag        string // if there is no digest
}

const root = "/v2/"

// Names and their lengths as the OCI distribution specification defines them.
var (
	repositoryForm = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagForm        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	registryForm   = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?$`)
)

const maxNameLen = 255

// parse parses a request's path below prefix. No part of it is used as a file path, so nothing is unescaped or cleaned:
// a path that does not match exactly is unknown.
func parse(registry, prefix, path string) (want, bool) {
	w := want{registry: registry}
	rest, ok := strings.CutPrefix(path, prefix)
	if !ok {
		return want{}, false
	}
	last := strings.LastIndexByte(rest, '/')
	if last < 0 {
		return want{}, false
	}
	ref := rest[last+1:]
	kind := strings.LastIndexByte(rest[:last], '/')
	if kind < 0 {
		return want{}, false
	}
	w.repository, w.kind = rest[:kind], rest[kind+1:last]
	if len(w.repository) > maxNameLen || !repositoryForm.MatchString(w.repository) || len(registry) > maxNameLen ||
		!registryForm.MatchString(registry) {
		return want{}, false
	}
	if d := digest.Digest(ref); strings.Contains(ref, ":") {
		w.digest = d
		return w, (w.kind == manifests || w.kind == blobs) && d.Validate() == nil
	}
	w.tag = ref
	return w, w.kind == manifests && tagForm.MatchString(ref)
}

// parseURL parses the URL of a request between nodes.
func parseURL(u *url.URL) (want, bool) {
	if u.RawPath != "" || len(u.RawQuery) > 2*maxNameLen {
		return want{}, false // names need no escapes
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil || len(q) != 1 || len(q["ns"]) != 1 {
		return want{}, false
	}
	return parse(q.Get("ns"), root, u.Path)
}

// url is the URL of the object on another node.
func (w want) url(node string) string {
	u := url.URL{Scheme: "https", Host: node, Path: root + w.repository + "/" + w.kind + "/" + w.ref(),
		RawQuery: url.Values{"ns": {w.registry}}.Encode()}
	return u.String()
}

func (w want) ref() string {
	if w.digest != "" {
		return w.digest.String()
	}
	return w.tag
}

// place is the repository's name including the registry.
func (w want) place() string { return w.registry + "/" + w.repository }

// image is the name under which containerd stores the image.
func (w want) image() string { return w.place() + ":" + w.tag }
