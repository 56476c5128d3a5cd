package imageshare

import (
	"net/url"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
)

// What is asked for by the registry protocol.
const (
	manifests = "manifests"
	blobs     = "blobs"
)

// want is a thing that is asked for.
type want struct {
	registry   string // as in the image's name: docker.io
	repository string // library/nginx
	kind       string // manifests or blobs
	digest     digest.Digest
	tag        string // where there is no digest
}

const root = "/v2/"

// The forms of names, and how long they may be, as the specification of the protocol has them.
var (
	repositoryForm = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagForm        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	registryForm   = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?$`)
)

const longestName = 255

// parse takes a request's path, below prefix, apart. Nothing in it is a file's path, so nothing is unescaped or
// cleaned: what is not of the exact form is not known.
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
	if len(w.repository) > longestName || !repositoryForm.MatchString(w.repository) || len(registry) > longestName || !registryForm.MatchString(registry) {
		return want{}, false
	}
	if d := digest.Digest(ref); strings.Contains(ref, ":") {
		w.digest = d
		return w, (w.kind == manifests || w.kind == blobs) && d.Validate() == nil
	}
	w.tag = ref
	return w, w.kind == manifests && tagForm.MatchString(ref)
}

// parseURL is parse for a request between nodes.
func parseURL(u *url.URL) (want, bool) {
	if u.RawPath != "" || len(u.RawQuery) > 2*longestName {
		return want{}, false // no name needs escapes
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil || len(q) != 1 || len(q["ns"]) != 1 {
		return want{}, false
	}
	return parse(q.Get("ns"), root, u.Path)
}

// url is where another node has it.
func (w want) url(node string) string {
	u := url.URL{Scheme: "https", Host: node, Path: root + w.repository + "/" + w.kind + "/" + w.ref(), RawQuery: url.Values{"ns": {w.registry}}.Encode()}
	return u.String()
}

func (w want) ref() string {
	if w.digest != "" {
		return w.digest.String()
	}
	return w.tag
}

// place is the repository with its registry.
func (w want) place() string { return w.registry + "/" + w.repository }

// image is the name under which containerd keeps it.
func (w want) image() string { return w.place() + ":" + w.tag }

// repositoryOf takes tag and digest off an image's name. Given a repository it returns that.
func repositoryOf(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		image = image[:i]
	}
	return image
}
