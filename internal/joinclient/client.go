package joinclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/packetmark"
	"github.com/umiak-io/umiak/internal/token"
)

// Address returns HOST:PORT of the URL of a server as a user gives it: https://HOST or https://HOST:6443.
func Address(server string) (string, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil ||
		u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%q is not a server such as https://10.0.0.1:6443", server)
	}
	port := u.Port()
	if port == "" {
		port = "6443"
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// Unpinned is the warning for a user who has set a password instead of a token.
const Unpinned = "a password says nothing about the server: whichever answers is trusted; a token from `umiak token " +
	"create` would have it checked"

// requestTimeout bounds one request.
const requestTimeout = time.Minute

// Client holds the credentials of a machine that joins.
type Client struct {
	CAs []byte // of the servers, in PEM form
	// Certificate is the client certificate of the machine. If it is nil, Token is sent.
	Certificate *tls.Certificate
	Token       token.Token
	Now         func() time.Time // the clock
	// Version is the release of this machine, Etcd the version of its etcd; Etcd is empty for an agent.
	Version, Etcd string
}

// Post sends a request to one server, HOST:PORT, and decodes its answer into answer. A refusal is a *joinwire.Error. It
// returns the release of the server, empty if the server does not send it.
func (c Client) Post(ctx context.Context, addr, path string, request, answer any) (server string, err error) {
	conf, err := token.TLS(c.CAs, c.Now)
	if err != nil {
		return "", err
	}
	if c.Certificate != nil {
		// Set as a function, so that an expired certificate is sent, too.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.Certificate, nil
		}
	}
	tr := &http.Transport{DialContext: packetmark.Dialer().DialContext, TLSClientConfig: conf, DisableKeepAlives: true,
		TLSHandshakeTimeout: 15 * time.Second}
	defer tr.CloseIdleConnections()
	body, err := json.Marshal(request)
	if err != nil {
		return "", fmt.Errorf("encode request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return "", fmt.Errorf("ask %s: %w", addr, err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(joinwire.VersionHeader, c.Version)
	if c.Etcd != "" {
		r.Header.Set(joinwire.EtcdHeader, c.Etcd)
	}
	if c.Certificate == nil {
		r.SetBasicAuth(c.Token.ID, c.Token.Secret)
	}
	hc := &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	resp, err := hc.Do(r)
	if err != nil {
		return "", c.describe(addr, err)
	}
	defer resp.Body.Close() //nolint:errcheck // nothing more is read
	server = resp.Header.Get(joinwire.VersionHeader)
	if resp.StatusCode != http.StatusOK {
		var e joinwire.Error
		if err := joinwire.DecodeAnswer(resp.Body, &e); err != nil || e.Code == "" {
			return server, fmt.Errorf("ask %s: it answers %s", addr, resp.Status)
		}
		return server, fmt.Errorf("server %s: %w", addr, &e)
	}
	if err := joinwire.DecodeAnswer(resp.Body, answer); err != nil {
		return server, fmt.Errorf("read the answer of %s: %w", addr, err)
	}
	return server, nil
}

// describe adds to an error of a request what an error of TLS means for the user.
func (c Client) describe(addr string, err error) error {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return fmt.Errorf("%w, here or on the server: it says %s here: %w", token.ErrClock,
			c.Now().UTC().Format(time.DateTime), err)
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return fmt.Errorf("the server is of another cluster than this machine's, or has been installed again; to "+
			"join it, run `umiak cleanup --purge` first: %w", err)
	}
	return fmt.Errorf("ask %s: %w", addr, err)
}
