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

// Address takes a server's URL apart, as a user gives it: https://HOST or https://HOST:6443.
func Address(server string) (string, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%q is not a server such as https://10.0.0.1:6443", server)
	}
	port := u.Port()
	if port == "" {
		port = "6443"
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// Unpinned is what to tell a user who has set a password instead of a token.
const Unpinned = "a password says nothing about the server: whichever answers is trusted; a token from `umiak token create` would have it checked"

// patience is how long one request may take.
const patience = time.Minute

// Client is how a machine shows who it is.
type Client struct {
	CAs []byte // of the servers, in PEM form
	// Certificate is the machine's own; without one the token is sent.
	Certificate *tls.Certificate
	Token       token.Token
	Now         func() time.Time
	// Version is the machine's release, Etcd the version of the etcd that it has, if it is to be a server.
	Version, Etcd string
}

// Post asks one server, HOST:PORT, and reads its answer into answer. A refusal is a *joinapi.Error. It returns the
// server's release, if that says so.
func (c Client) Post(ctx context.Context, addr, path string, request, answer any) (server string, err error) {
	conf, err := token.TLS(c.CAs, c.Now)
	if err != nil {
		return "", err
	}
	if c.Certificate != nil {
		// Also one that the server might not choose by itself, because it has ended.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.Certificate, nil }
	}
	tr := &http.Transport{DialContext: packetmark.Dialer().DialContext, TLSClientConfig: conf, DisableKeepAlives: true, TLSHandshakeTimeout: 15 * time.Second}
	defer tr.CloseIdleConnections()
	body, err := json.Marshal(request)
	if err != nil {
		return "", fmt.Errorf("encode request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
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
	hc := &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := hc.Do(r)
	if err != nil {
		return "", c.explain(addr, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end or given up
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

// explain says what an error of TLS means here.
func (c Client) explain(addr string, err error) error {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return fmt.Errorf("%w, here or on the server: it says %s here: %w", token.ErrClock, c.Now().UTC().Format(time.DateTime), err)
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return fmt.Errorf("the server is of another cluster than this machine's, or has been set up anew; to join it, run `umiak cleanup --purge` first: %w", err)
	}
	return fmt.Errorf("ask %s: %w", addr, err)
}
