package token

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/umiak-io/umiak/internal/packetmark"
	"github.com/umiak-io/umiak/internal/wallclock"
)

// ServerName is a DNS name in the certificate of every server, whatever its address.
const ServerName = "kubernetes"

// Errors of FetchCA and CheckClock.
var (
	// ErrWrongServer means that the other end is not a server of the token's cluster.
	ErrWrongServer = errors.New("this is not a server of the token's cluster")
	// ErrClock means that a clock is wrong. It may be set later.
	ErrClock = errors.New("the clock is wrong")
)

// CheckClock returns ErrClock if now is before this release, so that the clock is certainly wrong.
func CheckClock(now time.Time) error {
	if now.Before(wallclock.Released) {
		return fmt.Errorf("%w: it says %s, which is before this release of %s; waiting until it is set (by NTP, or "+
			"with date -s)",
			ErrClock, now.UTC().Format(time.DateTime), wallclock.Released.Format(time.DateOnly))
	}
	return nil
}

// errOtherCA means that a server presents CAs, none of which is the wanted one.
var errOtherCA = errors.New("its CA has another hash than the token; the token is of another cluster, or the " +
	"connection is intercepted")

// FetchCA connects to a server and returns the CA certificate that it presents, after checking that it has the hash
// in the token and that it signed the server's certificate. It sends only the TLS handshake. If the token has no
// hash, it returns any CA that the server presents, and the caller must warn its user.
func (t Token) FetchCA(ctx context.Context, addr string, now func() time.Time) (*x509.Certificate, error) {
	var want func(*x509.Certificate) bool
	if t.CA != "" {
		want = func(c *x509.Certificate) bool { return hasHash(c, t.CA) }
	}
	ca, err := fetchCA(ctx, addr, want, now)
	if errors.Is(err, errOtherCA) && t.User != "" {
		err = fmt.Errorf("%w; a hash that k3s has printed is that of a k3s cluster's CA, which no umiak server has: "+
			"set the token that `umiak token create` prints on a server", err)
	}
	return ca, err
}

// FetchKnownCA is Token.FetchCA for a machine that has the CAs of the cluster, in PEM form.
func FetchKnownCA(ctx context.Context, addr string, cas []byte, now func() time.Time) (*x509.Certificate, error) {
	trusted := parseCAs(cas)
	ca, err := fetchCA(ctx, addr, func(c *x509.Certificate) bool {
		return slices.ContainsFunc(trusted, func(k *x509.Certificate) bool { return HashCA(k) == HashCA(c) })
	}, now)
	if errors.Is(err, errOtherCA) {
		err = fmt.Errorf("%w: it has another CA than the cluster that this machine is or was a node of, so the "+
			"password was not sent to it; a token from `umiak token create` there names the CA, or run `umiak "+
			"cleanup --purge` to join another cluster", ErrWrongServer)
	}
	return ca, err
}

// fetchCA returns the CA certificate of a server for which want is true; nil accepts any.
func fetchCA(ctx context.Context, addr string, want func(*x509.Certificate) bool,
	now func() time.Time) (*x509.Certificate, error) {
	var ca *x509.Certificate
	d := tls.Dialer{
		NetDialer: &net.Dialer{Timeout: 10 * time.Second, Control: packetmark.Control},
		Config: &tls.Config{
			MinVersion: tls.VersionTLS12, ServerName: ServerName,
			// pick verifies the chain below.
			InsecureSkipVerify: true,
			VerifyConnection: func(s tls.ConnectionState) (err error) {
				ca, err = pick(s.PeerCertificates, want, now())
				return err
			},
		},
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", addr)
	if unknown := (*net.DNSError)(nil); errors.As(err, &unknown) &&
		strings.HasSuffix(strings.TrimSuffix(unknown.Name, "."), ".local") {
		// Go's resolver does not implement mDNS (RFC 6762), and guides for the Raspberry Pi use NAME.local.
		return nil, fmt.Errorf("connect to %s: %w; names in .local (mDNS) are not looked up: give the address, or a "+
			"name that DNS has", addr, err)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	_ = conn.Close() // the handshake has delivered the CA
	return ca, nil
}

// pick returns the CA in a chain for which want is true, after checking that it signed the leaf and that the leaf is
// the certificate of a server. A nil want accepts any CA.
func pick(chain []*x509.Certificate, want func(*x509.Certificate) bool, now time.Time) (*x509.Certificate, error) {
	if len(chain) == 0 {
		return nil, fmt.Errorf("%w: it has no certificate", ErrWrongServer)
	}
	var ca *x509.Certificate
	others := x509.NewCertPool()
	for _, c := range chain[1:] {
		if c.IsCA && (want == nil || want(c)) {
			ca = c // the last one, which is the root if any is accepted
		}
		others.AddCert(c)
	}
	if ca == nil {
		if len(chain) == 1 {
			return nil, fmt.Errorf("%w: it presents no CA certificate, so it is no umiak server", ErrWrongServer)
		}
		return nil, fmt.Errorf("%w: %w", ErrWrongServer, errOtherCA)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	_, err := chain[0].Verify(x509.VerifyOptions{
		DNSName: ServerName, Roots: roots, Intermediates: others, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return nil, fmt.Errorf("%w, here or on the server: it says %s here, and the server's certificate is good "+
			"from %s to %s", ErrClock,
			now.UTC().Format(time.DateTime), chain[0].NotBefore.Format(time.DateTime),
			chain[0].NotAfter.Format(time.DateTime))
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrWrongServer, err)
	}
	return ca, nil
}

// TLS returns a client configuration for servers whose CAs, in PEM form, are known. now is the clock.
func TLS(cas []byte, now func() time.Time) (*tls.Config, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(cas) {
		return nil, errors.New("read the cluster's CA: no certificate in PEM form")
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: ServerName, Time: now}, nil
}
