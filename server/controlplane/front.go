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

// Front has h answer all requests for paths that begin with prefix, before the API server authenticates
// them: h has to find out by itself who asks, from a token or from the client certificate, which TLS has
// asked for but not verified (http.Request.TLS.PeerCertificates). Call it before Run.
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
