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

// ServerName is the name that every server's certificate has, whatever its address.
const ServerName = "kubernetes"

// Errors of FetchCA and CheckClock.
var (
	// ErrWrongServer means that the other end is not a server of the token's cluster.
	ErrWrongServer = errors.New("this is not a server of the token's cluster")
	// ErrClock means that a clock is wrong; it may be right later.
	ErrClock = errors.New("the clock is wrong")
)

// CheckClock fails while this machine's clock is certainly wrong.
func CheckClock(now time.Time) error {
	if now.Before(wallclock.Released) {
		return fmt.Errorf("%w: it says %s, which is before this release of %s; waiting until it is set (by NTP, or with date -s)",
			ErrClock, now.UTC().Format(time.DateTime), wallclock.Released.Format(time.DateOnly))
	}
	return nil
}

// errOtherCA means that a server presents CAs, and none is the one that is looked for.
var errOtherCA = errors.New("its CA has another hash than the token; the token is of another cluster, or somebody stands between")

// FetchCA connects to a server and returns the CA certificate that it presents, once it has the token's
// hash and has signed the server's certificate. Nothing is sent but what TLS needs. Without a hash it
// returns whatever CA the server presents: the caller must say so to its user.
func (t Token) FetchCA(ctx context.Context, addr string, now func() time.Time) (*x509.Certificate, error) {
	var want func(*x509.Certificate) bool
	if t.CA != "" {
		want = func(c *x509.Certificate) bool { return hasHash(c, t.CA) }
	}
	ca, err := fetchCA(ctx, addr, want, now)
	if errors.Is(err, errOtherCA) && t.User != "" {
		err = fmt.Errorf("%w; a hash that k3s has printed is that of a k3s cluster's CA, which no umiak server has: set the token that `umiak token create` prints on a server", err)
	}
	return ca, err
}

// FetchKnownCA is Token.FetchCA for a machine that knows the cluster's CAs, in PEM form.
func FetchKnownCA(ctx context.Context, addr string, cas []byte, now func() time.Time) (*x509.Certificate, error) {
	known := parseCAs(cas)
	ca, err := fetchCA(ctx, addr, func(c *x509.Certificate) bool {
		return slices.ContainsFunc(known, func(k *x509.Certificate) bool { return HashCA(k) == HashCA(c) })
	}, now)
	if errors.Is(err, errOtherCA) {
		err = fmt.Errorf("%w: it has another CA than the cluster that this machine is or was a node of, so the password was not sent to it; a token from `umiak token create` there names the CA, or run `umiak cleanup --purge` to join another cluster", ErrWrongServer)
	}
	return ca, err
}

func fetchCA(ctx context.Context, addr string, want func(*x509.Certificate) bool, now func() time.Time) (*x509.Certificate, error) {
	var ca *x509.Certificate
	d := tls.Dialer{
		NetDialer: &net.Dialer{Timeout: 10 * time.Second, Control: packetmark.Control},
		Config: &tls.Config{
			MinVersion: tls.VersionTLS12, ServerName: ServerName,
			// The chain is checked below, against what the token says.
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
	if unknown := (*net.DNSError)(nil); errors.As(err, &unknown) && strings.HasSuffix(strings.TrimSuffix(unknown.Name, "."), ".local") {
		// Go's own resolver knows nothing of RFC 6762, and every Raspberry Pi is told to be NAME.local.
		return nil, fmt.Errorf("connect to %s: %w; names in .local (mDNS) are not looked up: give the address, or a name that DNS has", addr, err)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	_ = conn.Close() // all is known
	return ca, nil
}

// pick finds the CA in a chain and checks that it is the one, and that the leaf is its server's. Without want any is.
func pick(chain []*x509.Certificate, want func(*x509.Certificate) bool, now time.Time) (*x509.Certificate, error) {
	if len(chain) == 0 {
		return nil, fmt.Errorf("%w: it has no certificate", ErrWrongServer)
	}
	var ca *x509.Certificate
	others := x509.NewCertPool()
	for _, c := range chain[1:] {
		if c.IsCA && (want == nil || want(c)) {
			ca = c // where any is: the last, which is the root
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
		DNSName: ServerName, Roots: roots, Intermediates: others, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return nil, fmt.Errorf("%w, here or on the server: it says %s here, and the server's certificate is good from %s to %s", ErrClock,
			now.UTC().Format(time.DateTime), chain[0].NotBefore.Format(time.DateTime), chain[0].NotAfter.Format(time.DateTime))
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrWrongServer, err)
	}
	return ca, nil
}

// TLS is the configuration with which to speak to servers once their CAs, in PEM form, are known.
func TLS(cas []byte, now func() time.Time) (*tls.Config, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(cas) {
		return nil, errors.New("read the cluster's CA: no certificate in PEM form")
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: ServerName, Time: now}, nil
}
