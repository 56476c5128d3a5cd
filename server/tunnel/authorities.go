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

// How long a node has to renew its certificates, and how long to wait before it is asked again.
const (
	renewTimeout  = 30 * time.Second
	shortestRenew = time.Second
	longestRenew  = time.Minute
)

// SetAuthorities has every node that is or will be connected take over the authorities with a hash of
// tunnelwire.HashAuthorities, which this server has from now on.
func (t *Tunnels) SetAuthorities(hash string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.authorities == hash {
		return
	}
	t.authorities = hash
	for _, list := range t.nodes {
		for _, s := range list { // an older one is used again when the newest ends
			go t.tell(s, hash)
		}
	}
}

// Authorities says which authorities a node has, by the hash of SetAuthorities, and since when; false if it has no tunnel
// to this server or has not answered yet.
func (t *Tunnels) Authorities(node string) (hash string, since time.Time, ok bool) {
	s, _ := t.choose(node)
	if s == nil {
		return "", since, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return s.authorities, s.renewed, s.authorities != ""
}

// tell asks a node until it has what this server has.
func (t *Tunnels) tell(s *session, hash string) {
	for pauses := (retry.Backoff{First: shortestRenew, Limit: longestRenew}); ; {
		has, err := s.renew(hash)
		t.mu.Lock()
		if err == nil {
			s.authorities, s.renewed = has.Hash, time.Now().Add(-time.Duration(has.AgeSeconds)*time.Second)
		}
		over := t.authorities != hash
		t.mu.Unlock()
		switch {
		case over, !s.usable(), errors.Is(err, errCannot):
			return
		case err == nil && has.Hash == hash:
			return
		case err != nil:
			t.log.Warn("a node has not taken over the cluster's authorities yet, asking again", "node", s.node, "error", err)
		}
		select {
		case <-s.conn.Ended():
			return
		case <-time.After(pauses.Next()):
		}
	}
}

// errCannot means that a node's release does not know the question.
var errCannot = errors.New("the node's release does not know the question")

// renew asks once.
func (s *session) renew(hash string) (has tunnelwire.Authorities, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), renewTimeout)
	defer cancel()
	req := (&http.Request{
		Method: http.MethodPost, Host: "node", Header: http.Header{"User-Agent": {""}}, Body: http.NoBody,
		URL: &url.URL{Scheme: "http", Host: "node:1", Path: tunnelwire.AuthoritiesPath, RawQuery: url.Values{tunnelwire.AuthoritiesHash: {hash}}.Encode()},
	}).WithContext(ctx)
	resp, err := s.http.RoundTrip(req)
	if err != nil {
		return has, fmt.Errorf("ask node %s for its authorities: %w", s.node, err)
	}
	defer resp.Body.Close() //nolint:errcheck // all of it has been read, or the node says too much
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	switch {
	case err != nil:
		return has, fmt.Errorf("ask node %s for its authorities: %w", s.node, err)
	case resp.StatusCode == http.StatusMethodNotAllowed:
		return has, errCannot
	case resp.StatusCode != http.StatusOK:
		return has, fmt.Errorf("ask node %s for its authorities: %s", s.node, strings.TrimSpace(string(raw)))
	}
	if err := json.Unmarshal(raw, &has); err != nil {
		return has, fmt.Errorf("ask node %s for its authorities: %w", s.node, err)
	}
	return has, nil
}
