package tunnel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/umiak-io/umiak/internal/retry"
	"github.com/umiak-io/umiak/internal/tunnelwire"
)

// Timeout for a node to renew its certificates, and bounds of the pause before the next attempt.
const (
	renewTimeout  = 30 * time.Second
	minRenewPause = time.Second
	maxRenewPause = time.Minute
)

// SetAuthorities makes every node that is or will be connected adopt this server's CAs, given by their hash
// (tunnelwire.HashAuthorities).
func (t *Tunnels) SetAuthorities(hash string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.authorities == hash {
		return
	}
	t.authorities = hash
	for _, list := range t.nodes {
		for _, s := range list { // an older session is used again when the newest ends
			go t.pushAuthorities(s, hash)
		}
	}
}

// Authorities returns the hash of the CAs that a node has, and since when. ok is false if the node has no tunnel to
// this server or has not answered yet.
func (t *Tunnels) Authorities(node string) (hash string, since time.Time, ok bool) {
	s, _ := t.choose(node)
	if s == nil {
		return "", since, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return s.authorities, s.renewed, s.authorities != ""
}

// pushAuthorities asks a node to renew its certificates until it has this server's CAs.
func (t *Tunnels) pushAuthorities(s *session, hash string) {
	for pauses := (retry.Backoff{First: minRenewPause, Limit: maxRenewPause}); ; {
		has, err := s.renew(hash)
		t.mu.Lock()
		if err == nil {
			s.authorities, s.renewed = has.Hash, time.Now().Add(-time.Duration(has.AgeSeconds)*time.Second)
		}
		over := t.authorities != hash
		t.mu.Unlock()
		switch {
		case over, !s.usable(), errors.Is(err, errUnsupported):
			return
		case err == nil && has.Hash == hash:
			return
		case err != nil:
			t.log.Warn("a node has not adopted the cluster's CAs yet, trying again", "node", s.node, "error", err)
		}
		select {
		case <-s.conn.Ended():
			return
		case <-time.After(pauses.Next()):
		}
	}
}

// errUnsupported means that the node's release does not support the request.
var errUnsupported = errors.New("the node's release does not support the request")

// renew asks the node once to adopt the CAs.
func (s *session) renew(hash string) (has tunnelwire.Authorities, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), renewTimeout)
	defer cancel()
	req := (&http.Request{
		Method: http.MethodPost, Host: "node", Header: http.Header{"User-Agent": {""}}, Body: http.NoBody,
		URL: &url.URL{Scheme: "http", Host: "node:1", Path: tunnelwire.AuthoritiesPath,
			RawQuery: url.Values{tunnelwire.AuthoritiesHash: {hash}}.Encode()},
	}).WithContext(ctx)
	resp, err := s.http.RoundTrip(req)
	if err != nil {
		return has, fmt.Errorf("renew certificates of node %s: %w", s.node, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end or to the limit
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	switch {
	case err != nil:
		return has, fmt.Errorf("renew certificates of node %s: %w", s.node, err)
	case resp.StatusCode == http.StatusMethodNotAllowed:
		return has, errUnsupported
	case resp.StatusCode != http.StatusOK:
		return has, fmt.Errorf("renew certificates of node %s: %s", s.node, strings.TrimSpace(string(raw)))
	}
	if err := json.Unmarshal(raw, &has); err != nil {
		return has, fmt.Errorf("renew certificates of node %s: %w", s.node, err)
	}
	return has, nil
}
