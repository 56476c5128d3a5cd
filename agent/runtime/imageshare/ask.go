package imageshare

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// atOnce is how many nodes are asked at the same time.
	atOnce = 8
	// askTime is how long a node has to say whether it has something, connecting included.
	askTime = 2 * time.Second
	// dialTime is for reaching it. The handshake may take longer than a question, where many begin one at a time:
	// it goes on, and the next question finds it done.
	dialTime      = time.Second
	handshakeTime = 10 * time.Second
)

// dial connects to a node: to one of the addresses that the cluster says it has, if that is really it.
func (s *Share) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	name, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n, ok := s.nodes.get(name)
	if !ok {
		return nil, fmt.Errorf("node %s is not known any more", name)
	}
	cfg, err := s.id.client(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	var errs []error
	for _, a := range n.addrs {
		d := net.Dialer{Timeout: dialTime}
		c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(a.String(), port))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		t := tls.Client(c, cfg)
		if err := t.HandshakeContext(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s is not node %s: %w", a, name, err), c.Close())
			continue
		}
		return t, nil
	}
	return nil, errors.Join(errs...)
}

func (s *Share) transport() *http.Transport {
	return &http.Transport{
		DialTLSContext: s.dial, DisableCompression: true, // digests are of what is sent
		MaxIdleConnsPerHost: 2, IdleConnTimeout: idle, ResponseHeaderTimeout: stalled,
	}
}

// request asks a node.
func (s *Share) request(ctx context.Context, method, node string, w want, part string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, w.url(net.JoinHostPort(node, strconv.Itoa(s.port))), nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", "umiak")
	if part != "" {
		r.Header.Set("Range", part)
	}
	resp, err := s.http.RoundTrip(r)
	if err != nil && ctx.Err() == nil || errors.Is(err, context.DeadlineExceeded) {
		s.log.Debug("a neighbour does not answer", "node", node, "error", err)
		s.nodes.putAside(node, false)
	}
	return resp, err
}

// answer is what a node said.
type answer struct {
	node string
	has  *http.Response // without a body; nil where it has not got it
	// again means that it may have it later: it gives to others now, or does not answer in time.
	again bool
}

// ask asks nodes whether they have something, some at once, in order. Who has heard enough stops reading: the
// questions that are under way end by themselves.
func (s *Share) ask(ctx context.Context, w want, nodes []neighbour) (answers <-chan answer, enough func()) {
	out := make(chan answer, len(nodes))
	ctx, stop := context.WithCancel(ctx)
	var next, left atomic.Int64
	workers := min(atOnce, len(nodes))
	left.Store(int64(workers))
	for range workers {
		go func() {
			defer func() {
				if left.Add(-1) == 0 {
					close(out)
				}
			}()
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(nodes) {
					return
				}
				out <- s.has(ctx, w, nodes[i].name)
			}
		}()
	}
	if workers == 0 {
		close(out)
	}
	return out, stop
}

// has asks one node. A question that nobody waits for any more is not broken off, because that would cost the
// connection.
func (s *Share) has(ctx context.Context, w want, node string) answer {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTime)
	defer cancel()
	a := answer{node: node}
	resp, err := s.request(ctx, http.MethodHead, node, w, "")
	if err != nil {
		a.again = timedOut(err)
		return a
	}
	_ = resp.Body.Close()
	s.nodes.answered(node)
	switch resp.StatusCode {
	case http.StatusOK:
		d := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		if d.Validate() == nil && (w.digest == "" || d == w.digest) && resp.ContentLength >= 0 && (w.kind == blobs || resp.ContentLength <= largestManifest) {
			a.has = resp
		}
	case http.StatusServiceUnavailable:
		a.again = true
	}
	return a
}

// timedOut says whether a node may answer later, as one that refuses connections will not.
func timedOut(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// get takes a blob or a manifest from a node; nil where that is not to be.
func (s *Share) get(pull context.Context, node string, w want, part string) (_ *http.Response, again bool) {
	ctx, cancel := context.WithCancel(pull)
	resp, err := s.request(ctx, http.MethodGet, node, w, part)
	if err != nil {
		cancel()
		return nil, timedOut(err)
	}
	status := http.StatusOK
	if part != "" {
		status = http.StatusPartialContent
	}
	begin := "bytes " + strings.TrimSuffix(strings.TrimPrefix(part, "bytes="), "-") + "-"
	if resp.StatusCode != status || resp.ContentLength < 0 || part != "" && !strings.HasPrefix(resp.Header.Get("Content-Range"), begin) {
		_ = resp.Body.Close()
		cancel()
		return nil, resp.StatusCode == http.StatusServiceUnavailable
	}
	b := &body{Reader: resp.Body, close: resp.Body.Close, pull: pull.Err, cancel: cancel, s: s, node: node, left: resp.ContentLength}
	b.watch = time.AfterFunc(stalled, cancel)
	if part == "" {
		b.want, b.sum = w.digest, w.digest.Algorithm().Hash()
	}
	resp.Body = b
	return resp, false
}

// body is what a node sends. One that does not match its digest, or stands still, is the node's fault: the next
// attempt is made with another.
type body struct {
	io.Reader
	close  func() error
	pull   func() error // whether it has been given up
	cancel context.CancelFunc
	watch  *time.Timer
	s      *Share
	node   string
	left   int64

	want digest.Digest
	sum  interface {
		io.Writer
		Sum([]byte) []byte
	}
}

func (b *body) Read(p []byte) (int, error) {
	b.watch.Reset(stalled)
	n, err := b.Reader.Read(p)
	b.watch.Reset(stalled)
	b.left -= int64(n)
	b.s.count.taken.Add(int64(n))
	if b.sum != nil {
		_, _ = b.sum.Write(p[:n]) // a hash takes all
	}
	switch {
	case b.left == 0 && b.sum != nil:
		if got := digest.NewDigestFromBytes(b.want.Algorithm(), b.sum.Sum(nil)); got != b.want {
			b.s.nodes.putAside(b.node, true)
			b.s.log.Warn("a neighbour gave something else than was asked for; look at the disk of that node", "node", b.node, "wanted", b.want, "got", got)
			return 0, fmt.Errorf("node %s gave %s for %s", b.node, got, b.want)
		}
		b.sum = nil
	case err != nil && b.left > 0 && b.pull() == nil:
		b.s.nodes.putAside(b.node, false)
		err = io.ErrUnexpectedEOF // containerd goes on from here then
	}
	return n, err
}

func (b *body) Close() error {
	b.watch.Stop()
	b.cancel()
	return b.close()
}
