package join

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/umiak-io/umiak/internal/joinapi"
	"github.com/umiak-io/umiak/internal/token"
)

// post asks a server, whose CA is known. own is the node's certificate; without one the token is sent.
func (j *Joiner) post(ctx context.Context, addr, path string, req *joinapi.NodeRequest, cas []byte, own *tls.Certificate) (*joinapi.NodeResponse, error) {
	conf, err := token.TLS(cas, j.cfg.Now)
	if err != nil {
		return nil, err
	}
	if own != nil {
		// Also one that the server might not choose by itself, because it has ended.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own, nil }
	}
	tr := &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true, TLSHandshakeTimeout: 15 * time.Second}
	defer tr.CloseIdleConnections()
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", addr, err)
	}
	r.Header.Set("Content-Type", "application/json")
	if own == nil {
		r.SetBasicAuth(j.cfg.Token.ID, j.cfg.Token.Secret)
	}
	c := &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := c.Do(r)
	if err != nil {
		var invalid x509.CertificateInvalidError
		if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			return nil, fmt.Errorf("%w, here or on the server: it says %s here: %w", token.ErrClock, j.cfg.Now().UTC().Format(time.DateTime), err)
		}
		var unknown x509.UnknownAuthorityError
		if errors.As(err, &unknown) {
			return nil, fmt.Errorf("the server is of another cluster than this machine's, or has been set up anew; to join it, run `umiak cleanup --purge` first: %w", err)
		}
		return nil, fmt.Errorf("ask %s: %w", addr, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end or given up
	if resp.StatusCode != http.StatusOK {
		var e joinapi.Error
		if err := joinapi.DecodeAnswer(resp.Body, &e); err != nil || e.Code == "" {
			return nil, fmt.Errorf("ask %s: it answers %s", addr, resp.Status)
		}
		return nil, fmt.Errorf("server %s: %w", addr, &e)
	}
	var out joinapi.NodeResponse
	if err := joinapi.DecodeAnswer(resp.Body, &out); err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", addr, err)
	}
	return &out, nil
}
