package tunnel

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/umiak-io/umiak/internal/wellknown"
)

// Identity verifies the client certificates of agents.
type Identity struct {
	// ClientCA is the file with the client CAs. It is read at each request, because CAs may be rotated and nodes
	// connect rarely.
	ClientCA string
	// Admits returns an error for nodes that no longer belong to the cluster, given the public key of their
	// certificate; nil admits all.
	Admits func(ctx context.Context, node string, key []byte) error
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// refusal is an error with the HTTP status of the response.
type refusal struct {
	status int
	reason string
}

func (r *refusal) Error() string { return r.reason }

// node verifies the request's client certificate and returns the node's name. TLS has only verified that the client has
// the certificate's key.
func (i Identity) node(r *http.Request) (string, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return "", &refusal{http.StatusUnauthorized, "a tunnel needs a node's client certificate"}
	}
	pem, err := os.ReadFile(i.ClientCA)
	if err != nil {
		return "", fmt.Errorf("read client CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return "", fmt.Errorf("read client CA: no certificate in %s", i.ClientCA)
	}
	intermediates := x509.NewCertPool()
	for _, c := range r.TLS.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	leaf := r.TLS.PeerCertificates[0]
	opts := x509.VerifyOptions{Roots: roots, Intermediates: intermediates,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if i.Now != nil {
		opts.CurrentTime = i.Now()
	}
	if _, err := leaf.Verify(opts); err != nil {
		var invalid x509.CertificateInvalidError
		if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			return "", &refusal{http.StatusUnauthorized,
				"the certificate has expired or is not valid yet; compare the clocks of node and server"}
		}
		return "", &refusal{http.StatusUnauthorized, "the certificate is not from this cluster"}
	}
	name, ok := wellknown.AgentOf(leaf.Subject.CommonName, leaf.Subject.Organization)
	if !ok || len(name) > 253 {
		return "", &refusal{http.StatusForbidden, "the certificate is not an agent's"}
	}
	if err := i.admits(r.Context(), name, leaf.RawSubjectPublicKeyInfo); err != nil {
		return "", &refusal{http.StatusUnauthorized, err.Error()}
	}
	return name, nil
}

func (i Identity) admits(ctx context.Context, node string, key []byte) error {
	if i.Admits == nil {
		return nil
	}
	return i.Admits(ctx, node, key)
}
