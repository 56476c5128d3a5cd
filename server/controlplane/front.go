package controlplane

import (
	"net/http"
	"strings"
)

// front serves paths of umiak's own on the API server's port, so that joining and the tunnel need no
// second one.
type front struct {
	prefix  string
	handler http.Handler
}

// Front registers h for all requests for paths that begin with prefix, before the API server authenticates them: h
// authenticates by a token or by the client certificate, which TLS has requested but not verified
// (http.Request.TLS.PeerCertificates). It must be called before Run.
func (a *APIServer) Front(prefix string, h http.Handler) {
	a.fronts = append(a.fronts, front{prefix, h})
}

// behind puts the fronts before the API server's own chain.
func (a *APIServer) behind(next http.Handler) http.Handler {
	if len(a.fronts) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, f := range a.fronts {
			if strings.HasPrefix(r.URL.Path, f.prefix) {
				f.handler.ServeHTTP(w, r)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}
