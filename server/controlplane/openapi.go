package controlplane

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	restful "github.com/emicklei/go-restful/v3"
	"github.com/munnerz/goautoneg"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
	"k8s.io/apiserver/pkg/util/responsewriter"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/handler3"

	"github.com/umiak-io/umiak/internal/version"
)

// lazyOpenAPI serves the OpenAPI documents of the built-in APIs. Upstream makes all of them at the start and holds them:
// 25 MiB of small objects and a fifth of a second of CPU for documents that most clusters rarely serve, one group at a
// time. Here upstream's code makes a document at its first request, and its compressed text stays in memory.
//
// CustomResourceDefinitions and aggregated APIs publish theirs elsewhere, as upstream does.
type lazyOpenAPI struct {
	v2       *common.Config
	v3       *common.OpenAPIV3Config
	services func() []*restful.WebService
	log      *slog.Logger
	// tag stands for the content of every document; made from what they are made from.
	tag  func() string
	root func() []byte
	born time.Time

	mu   sync.Mutex
	docs map[string]*document // of version 3, by path below /openapi/v3/ and media type
}

// document is one that has been made: its compressed text.
type document struct {
	once sync.Once
	text []byte
	err  error
}

const (
	openAPIv2 = "/openapi/v2"
	openAPIv3 = "/openapi/v3"
)

// newLazyOpenAPI takes the place of upstream's handlers; c must be the configuration that the server
// has not been made from yet.
func newLazyOpenAPI(c *genericapiserver.Config, log *slog.Logger) *lazyOpenAPI {
	c.SkipOpenAPIInstallation = true
	return &lazyOpenAPI{v2: c.OpenAPIConfig, v3: c.OpenAPIV3Config, log: log, born: time.Now().Truncate(time.Second),
		docs: map[string]*document{}}
}

// install serves the documents of g, whose built-in APIs are installed.
func (o *lazyOpenAPI) install(g *genericapiserver.GenericAPIServer) {
	o.services = g.Handler.GoRestfulContainer.RegisteredWebServices
	o.tag = sync.OnceValue(o.makeTag)
	o.root = sync.OnceValue(o.makeRoot)
	m := g.Handler.NonGoRestfulMux
	m.HandleFunc(openAPIv2, o.serveV2)
	m.HandleFunc(openAPIv3, o.serveRoot)
	m.HandlePrefix(openAPIv3+"/", http.HandlerFunc(o.serveV3))
}

// forget drops the definitions of all types, which the servers have been set up with. Upstream's code
// makes them afresh when they are missing.
func (o *lazyOpenAPI) forget() { o.v3.Definitions = nil }

// makeTag is a hash of what decides about the documents: the program and the APIs that are on.
func (o *lazyOpenAPI) makeTag() string {
	h := sha512.New512_256()
	fmt.Fprintln(h, version.String())
	if st, err := os.Stat("/proc/self/exe"); err == nil {
		fmt.Fprintln(h, st.Size(), st.ModTime().UnixNano()) // tells builds of one version apart
	}
	for _, s := range o.sorted() {
		for _, r := range s.Routes() {
			fmt.Fprintln(h, r.Method, r.Path)
		}
	}
	return fmt.Sprintf("%X", h.Sum(nil))
}

func (o *lazyOpenAPI) sorted() []*restful.WebService {
	return slices.SortedFunc(slices.Values(o.services()), func(a, b *restful.WebService) int {
		return strings.Compare(a.RootPath(), b.RootPath())
	})
}

func (o *lazyOpenAPI) makeRoot() []byte {
	root := handler3.OpenAPIV3Discovery{Paths: map[string]handler3.OpenAPIV3DiscoveryGroupVersion{}}
	for _, s := range o.services() {
		path := strings.TrimPrefix(s.RootPath(), "/")
		root.Paths[path] = handler3.OpenAPIV3DiscoveryGroupVersion{ServerRelativeURL: o.url(path)}
	}
	text, err := json.Marshal(root)
	if err != nil {
		o.log.Error("cannot list OpenAPI documents", "error", err)
	}
	return text
}

func (o *lazyOpenAPI) url(path string) string {
	u := url.URL{Path: openAPIv3 + "/" + path, RawQuery: url.Values{"hash": {o.tag()}}.Encode()}
	return u.String()
}

// serveRoot lists the documents. The aggregator asks once a second.
func (o *lazyOpenAPI) serveRoot(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Etag", strconv.Quote(o.tag()))
	w.Header().Set("Content-Type", "application/json")
	http.ServeContent(w, r, openAPIv3, o.born, bytes.NewReader(o.root()))
}

// serveV2 makes the one document of version 2. Its client is the aggregator, which caches it.
func (o *lazyOpenAPI) serveV2(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("If-None-Match") == strconv.Quote(o.tag()) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	o.mu.Lock() // one at a time: it takes memory
	defer o.mu.Unlock()
	m := mux.NewPathRecorderMux("openapi")
	routes.OpenAPI{Config: o.v2}.InstallV2(o.container(o.services()...), m)
	m.ServeHTTP(&tagged{w, o.tag()}, r)
}

// tagged puts our tag in the place of the handler's own.
type tagged struct {
	http.ResponseWriter
	tag string
}

func (t *tagged) WriteHeader(code int) {
	t.Header().Set("Etag", strconv.Quote(t.tag))
	t.ResponseWriter.WriteHeader(code)
}

// container holds some of the server's services, for upstream's code to walk over.
func (o *lazyOpenAPI) container(services ...*restful.WebService) *restful.Container {
	c := restful.NewContainer()
	c.ServeMux = http.NewServeMux()
	for _, s := range services {
		c.Add(s)
	}
	return c
}

// serveV3 serves the document of one group and version.
func (o *lazyOpenAPI) serveV3(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, openAPIv3+"/")
	if hash := r.URL.Query().Get("hash"); hash != "" && hash != o.tag() {
		http.Redirect(w, r, o.url(path), http.StatusMovedPermanently)
		return
	}
	w.Header().Set("Vary", "Accept")
	kind := mediaType(r.Header.Get("Accept"))
	if kind == "" {
		w.WriteHeader(http.StatusNotAcceptable)
		return
	}
	d := o.document(path, kind)
	if d == nil {
		http.NotFound(w, r)
		return
	}
	if d.err != nil {
		o.log.Error("cannot make OpenAPI document", "path", path, "error", d.err)
		http.Error(w, "the document cannot be made", http.StatusInternalServerError)
		return
	}
	zr, err := gzip.NewReader(bytes.NewReader(d.text))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	text, err := io.ReadAll(zr)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Etag", strconv.Quote(o.tag()))
	if r.URL.Query().Has("hash") {
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", time.Now().AddDate(1, 0, 0).Format(time.RFC1123))
	}
	http.ServeContent(w, r, "", o.born, bytes.NewReader(text))
}

// The media types of version 3.
const (
	mediaJSON  = "application/json"
	mediaProto = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
)

// mediaType is the one of the two that is wanted first; "" when neither is.
func mediaType(accept string) string {
	if accept == "" {
		return mediaJSON
	}
	for _, a := range goautoneg.ParseAccept(accept) {
		if a.Type != "application" && a.Type != "*" {
			continue
		}
		switch a.SubType {
		case "json", "*":
			return mediaJSON
		case "com.github.proto-openapi.spec.v3.v1.0+protobuf", "com.github.proto-openapi.spec.v3@v1.0+protobuf":
			return mediaProto
		}
	}
	return ""
}

// document makes the document at path unless it is there; nil when there is no such path.
func (o *lazyOpenAPI) document(path, kind string) *document {
	all := o.services()
	i := slices.IndexFunc(all, func(s *restful.WebService) bool { return s.RootPath() == "/"+path })
	if i < 0 {
		return nil
	}
	o.mu.Lock()
	d := o.docs[path+" "+kind]
	if d == nil {
		d = &document{}
		o.docs[path+" "+kind] = d
	}
	o.mu.Unlock()
	d.once.Do(func() {
		o.mu.Lock() // one at a time: it takes memory
		defer o.mu.Unlock()
		d.text, d.err = o.make(path, kind, all[i])
	})
	return d
}

// make has upstream's code make a document.
func (o *lazyOpenAPI) make(path, kind string, s *restful.WebService) ([]byte, error) {
	m := mux.NewPathRecorderMux("openapi")
	routes.OpenAPI{V3Config: o.v3}.InstallV3(o.container(s), m)
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, openAPIv3+"/"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	r.Header.Set("Accept", kind)
	w := responsewriter.NewInMemoryResponseWriter()
	m.ServeHTTP(w, r)
	if w.RespCode() != http.StatusOK {
		return nil, fmt.Errorf("make %s: status %d", kind, w.RespCode())
	}
	var small bytes.Buffer
	zw := gzip.NewWriter(&small)
	if _, err := zw.Write(w.Data()); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	if err := zw.Close(); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	return small.Bytes(), nil
}
