package imageshare

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/umiak-io/umiak/internal/retry"
)

// How long a pull retries neighbours that are busy or do not answer, while no registry answers: for the name, which it
// asks first, and for content, which exists if the name did.
const (
	nameTimeout    = 10 * time.Second
	contentTimeout = time.Minute
)

// Registry returns the hosts of a registry, as agent/runtime/registries does.
type Registry interface {
	Hosts(registry string, credentials func(host string) (user, secret string, err error)) (
		[]docker.RegistryHost, error)
}

// Hosts returns the hosts of the node's registry settings, with a transport for the first one that asks neighbours
// before. So a pull ends with the registry's own errors, and its credentials never reach a neighbour.
func (s *Share) Hosts(registry string, credentials func(host string) (user, secret string, err error)) (
	[]docker.RegistryHost, error) {
	hosts, err := s.cfg.Registry.Hosts(registry, credentials)
	if err != nil || len(hosts) == 0 || s.nodes.others() == 0 && s.cfg.Own == nil {
		return hosts, err
	}
	p := &puller{share: s, registry: registry, hosts: slices.Clone(hosts), next: http.DefaultTransport}
	var client http.Client
	if c := hosts[0].Client; c != nil {
		client = *c
	}
	if client.Transport != nil {
		p.next = client.Transport
	}
	client.Transport = p
	hosts[0].Client = &client
	return hosts, nil
}

// puller is the transport in front of the first host of a registry.
type puller struct {
	share    *Share
	registry string
	hosts    []docker.RegistryHost
	next     http.RoundTripper
}

// openRange matches the only form of a range that pulls use: from an offset to the end.
var openRange = regexp.MustCompile(`^bytes=[0-9]{1,18}-$`)

// RoundTrip answers from neighbours and imported images, or forwards the request to the registry.
func (p *puller) RoundTrip(req *http.Request) (*http.Response, error) {
	first := p.hosts[0]
	part := req.Header.Get("Range")
	answered := func(resp *http.Response) (*http.Response, error) {
		resp.Request = req
		return resp, nil
	}
	if req.Response == nil && req.Body == nil && req.URL.Host == first.Host && req.URL.RawPath == "" &&
		(part == "" || openRange.MatchString(part)) {
		if w, ok := parse(p.registry, strings.TrimSuffix(first.Path, "/")+"/", req.URL.Path); ok {
			switch {
			case req.Method == http.MethodHead && w.kind == manifests:
				if resp := p.name(req.Context(), w); resp != nil {
					return answered(resp)
				}
				resp, err := p.next.RoundTrip(req)
				if err == nil || req.Context().Err() != nil {
					return resp, err
				}
				// The cached probe may be outdated.
				p.share.probes.forget(p.hosts)
				if resp := p.name(req.Context(), w); resp != nil {
					return answered(resp)
				}
				return nil, err
			case req.Method == http.MethodGet && w.digest != "":
				if resp := p.content(req.Context(), w, part); resp != nil {
					return answered(resp)
				}
			}
		}
	}
	return p.next.RoundTrip(req)
}

// name resolves a tag, or confirms that a manifest exists. It is the first request of a pull. While a registry answers,
// it decides what a tag refers to and who may pull it. If none answers, an agent prefers the servers' answer to an
// image that was imported on itself, which may be older.
func (p *puller) name(ctx context.Context, w want) *http.Response {
	s := p.share
	if s.answers(ctx, p.hosts) {
		return nil
	}
	local, ok := p.imported(ctx, w)
	if ok && (w.digest != "" || s.nodes.selfIsServer()) {
		return s.importedResponse(w, local)
	}
	if resp := p.elsewhere(ctx, w); resp != nil {
		return resp
	}
	if ok {
		return s.importedResponse(w, local)
	}
	return nil
}

// imported returns the image if it was imported on this node.
func (p *puller) imported(ctx context.Context, w want) (ocispec.Descriptor, bool) {
	if p.share.cfg.Own == nil {
		return ocispec.Descriptor{}, false
	}
	name := w.image()
	if w.digest != "" {
		name = w.place() + "@" + w.digest.String()
	}
	d, ok := p.share.cfg.Own.Imported(ctx, name)
	return d, ok && (w.digest == "" || d.Digest == w.digest)
}

// importedResponse answers with an imported image. Its content is in the store, so the pull needs nothing else.
func (s *Share) importedResponse(w want, d ocispec.Descriptor) *http.Response {
	s.log.Info("the registry does not answer, using the image that was imported on this node", "image", w.place(),
		"tag", w.tag, "digest", d.Digest)
	h := http.Header{}
	h.Set("Content-Type", d.MediaType)
	h.Set("Docker-Content-Digest", d.Digest.String())
	return response(http.StatusOK, h, d.Size, http.NoBody)
}

// elsewhere asks other nodes for a name.
func (p *puller) elsewhere(ctx context.Context, w want) *http.Response {
	s := p.share
	if w.digest != "" {
		// Any node may confirm a digest, but its size and type come from the manifest itself.
		resp := retryAsk(ctx, nameTimeout, func() (*http.Response, bool) { return p.once(ctx, w, "", true) })
		if resp == nil {
			return nil
		}
		s.logName(w, w.digest.String(), "")
		return response(resp.StatusCode, resp.Header, resp.ContentLength, http.NoBody)
	}
	return retryAsk(ctx, nameTimeout, func() (_ *http.Response, again bool) {
		answers, enough := s.ask(ctx, w, s.nodes.candidates(w.place(), true, true))
		defer enough()
		for a := range answers {
			if a.has != nil {
				s.logName(w, a.has.Header.Get("Docker-Content-Digest"), a.node)
				return response(a.has.StatusCode, a.has.Header, a.has.ContentLength, http.NoBody), false
			}
			again = again || a.again
		}
		return nil, again
	})
}

// retryAsk calls ask with back-off until it returns a response, does not ask for a retry, or timeout or ctx ends.
func retryAsk(ctx context.Context, timeout time.Duration, ask func() (_ *http.Response, again bool)) *http.Response {
	pauses := retry.Backoff{Limit: 8 * time.Second, Spread: true}
	for until := time.Now().Add(timeout); ; {
		resp, again := ask()
		if resp != nil || !again || ctx.Err() != nil || time.Now().After(until) {
			return resp
		}
		if pauses.Wait(ctx) != nil {
			return nil
		}
	}
}

// logName logs that another node's answer replaces the registry's.
func (s *Share) logName(w want, digest, server string) {
	s.log.Info("the registry does not answer, using the image of other nodes", "image", w.place(), "tag", w.tag,
		"digest", digest, "server", server)
}

// content gets a blob or a manifest from a neighbour. If no registry answers, it retries busy neighbours: more nodes
// have the content then.
func (p *puller) content(ctx context.Context, w want, part string) *http.Response {
	resp, _ := p.once(ctx, w, part, false)
	if resp != nil || ctx.Err() != nil || p.share.answers(ctx, p.hosts) {
		return resp
	}
	return retryAsk(ctx, contentTimeout, func() (*http.Response, bool) { return p.once(ctx, w, part, true) })
}

// once asks all candidates; again reports whether a retry may succeed.
func (p *puller) once(ctx context.Context, w want, part string, need bool) (_ *http.Response, again bool) {
	s := p.share
	answers, enough := s.ask(ctx, w, s.nodes.candidates(w.place(), false, need))
	defer enough()
	for a := range answers {
		again = again || a.again
		if a.has == nil {
			continue
		}
		resp, later := s.get(ctx, a.node, w, part)
		again = again || later
		if resp == nil {
			continue
		}
		if w.kind == manifests {
			raw, err := io.ReadAll(io.LimitReader(resp.Body, maxManifestSize+1))
			_ = resp.Body.Close()
			t, ok := mediaType(raw)
			if err != nil || !ok {
				continue // the next one
			}
			resp.Header.Set("Content-Type", t)
			resp.Body = io.NopCloser(bytes.NewReader(raw))
		}
		s.count.blobs.Add(1)
		s.log.Debug("got content from a neighbour", "node", a.node, "repository", w.place(), "digest", w.digest)
		return response(resp.StatusCode, resp.Header, resp.ContentLength, resp.Body), false
	}
	return nil, again
}

// response copies the headers that a pull needs from a neighbour's answer.
func response(status int, from http.Header, length int64, body io.ReadCloser) *http.Response {
	h := http.Header{}
	for _, k := range []string{"Content-Type", "Docker-Content-Digest", "Content-Range"} {
		if v := from.Get(k); v != "" {
			h.Set(k, v)
		}
	}
	h.Set("Content-Length", strconv.FormatInt(length, 10))
	return &http.Response{
		StatusCode: status, Status: fmt.Sprintf("%d %s", status, http.StatusText(status)),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: h, ContentLength: length, Body: body,
	}
}
