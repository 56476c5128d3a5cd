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
	// maxParallel bounds how many nodes are asked at the same time.
	maxParallel = 8
	// askTimeout bounds the question whether a node has an object, including connecting.
	askTimeout = 2 * time.Second
	// dialTimeout bounds one TCP connect. handshakeTimeout is longer than askTimeout, since many handshakes may start
	// at once: a slow handshake continues, and the next question uses the connection.
	dialTimeout      = time.Second
	handshakeTimeout = 10 * time.Second
)

// dial connects to one of a node's addresses and verifies the node's certificate.
func (s *Share) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	name, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n, ok := s.nodes.get(name)
	if !ok {
		return nil, fmt.Errorf("node %s no longer exists", name)
	}
	cfg, err := s.id.client(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	var errs []error
	for _, a := range n.addrs {
		d := net.Dialer{Timeout: dialTimeout}
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
		DialTLSContext: s.dial, DisableCompression: true, // digests are of the uncompressed body
		MaxIdleConnsPerHost: 2, IdleConnTimeout: idleTimeout, ResponseHeaderTimeout: stallTimeout,
	}
}

// request sends a request to a node.
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
		s.nodes.avoidNode(node, false)
	}
	return resp, err
}

// answer is a node's answer to a question.
type answer struct {
	node string
	has  *http.Response // without a body; nil if the node does not have the object
	// again means that a retry may succeed: the node is busy, or did not answer in time.
	again bool
}

// ask asks nodes in order, several at a time, whether they have an object. The caller calls enough when it needs no
// more answers; questions in progress then end on their own.
func (s *Share) ask(ctx context.Context, w want, nodes []neighbour) (answers <-chan answer, enough func()) {
	out := make(chan answer, len(nodes))
	ctx, stop := context.WithCancel(ctx)
	var next, left atomic.Int64
	workers := min(maxParallel, len(nodes))
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

// has asks one node. The question is not canceled with ctx, because that would close the connection.
func (s *Share) has(ctx context.Context, w want, node string) answer {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
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
		if d.Validate() == nil && (w.digest == "" || d == w.digest) && resp.ContentLength >= 0 &&
			(w.kind == blobs || resp.ContentLength <= maxManifestSize) {
			a.has = resp
		}
	case http.StatusServiceUnavailable:
		a.again = true
	}
	return a
}

// timedOut reports whether the error is a timeout, after which a node may answer later.
func timedOut(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// get gets a blob or a manifest from a node; nil if the node does not send it.
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
	if resp.StatusCode != status || resp.ContentLength < 0 || part != "" &&
		!strings.HasPrefix(resp.Header.Get("Content-Range"), begin) {
		_ = resp.Body.Close()
		cancel()
		return nil, resp.StatusCode == http.StatusServiceUnavailable
	}
	b := &body{Reader: resp.Body, close: resp.Body.Close, pull: pull.Err, cancel: cancel, s: s, node: node,
		left: resp.ContentLength}
	b.watch = time.AfterFunc(stallTimeout, cancel)
	if part == "" {
		b.want, b.sum = w.digest, w.digest.Algorithm().Hash()
	}
	resp.Body = b
	return resp, false
}

// body is a response body from a node. It verifies the digest and the progress; a node that fails either is avoided, so
// the next attempt uses another.
type body struct {
	io.Reader
	close  func() error
	pull   func() error // the pull's context error
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
	b.watch.Reset(stallTimeout)
	n, err := b.Reader.Read(p)
	b.watch.Reset(stallTimeout)
	b.left -= int64(n)
	b.s.count.taken.Add(int64(n))
	if b.sum != nil {
		_, _ = b.sum.Write(p[:n]) // a hash never fails
	}
	switch {
	case b.left == 0 && b.sum != nil:
		if got := digest.NewDigestFromBytes(b.want.Algorithm(), b.sum.Sum(nil)); got != b.want {
			b.s.nodes.avoidNode(b.node, true)
			b.s.log.Warn("a neighbour sent content with a wrong digest; check the disk of that node", "node", b.node,
				"wanted", b.want, "got", got)
			return 0, fmt.Errorf("node %s sent %s instead of %s", b.node, got, b.want)
		}
		b.sum = nil
	case err != nil && b.left > 0 && b.pull() == nil:
		b.s.nodes.avoidNode(b.node, false)
		err = io.ErrUnexpectedEOF // containerd then resumes from here
	}
	return n, err
}

func (b *body) Close() error {
	b.watch.Stop()
	b.cancel()
	return b.close()
}
