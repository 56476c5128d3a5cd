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

// How long a pull waits for neighbours that are busy or do not answer, where no registry does: for the name that it
// asks first, and then for content, which is there if there was a name.
const (
	namePatience = 10 * time.Second
	patience     = time.Minute
)

// Registry is where images come from: agent/runtime/registries.
type Registry interface {
	Hosts(registry string, credentials func(host string) (user, secret string, err error)) ([]docker.RegistryHost, error)
}

// Hosts are those of the node's registry settings. What is asked of the first is asked of neighbours before, so
// the errors that a pull ends with are the registry's own, and no secret of a pull comes near a neighbour.
func (s *Share) Hosts(registry string, credentials func(host string) (user, secret string, err error)) ([]docker.RegistryHost, error) {
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

// puller stands before the first host of a registry.
type puller struct {
	share    *Share
	registry string
	hosts    []docker.RegistryHost
	next     http.RoundTripper
}

// onward is the only form of a range that a pull has: from somewhere to the end.
var onward = regexp.MustCompile(`^bytes=[0-9]{1,18}-$`)

// RoundTrip answers from neighbours and from what was imported here, or asks the registry.
func (p *puller) RoundTrip(req *http.Request) (*http.Response, error) {
	first := p.hosts[0]
	part := req.Header.Get("Range")
	answered := func(resp *http.Response) (*http.Response, error) {
		resp.Request = req
		return resp, nil
	}
	if req.Response == nil && req.Body == nil && req.URL.Host == first.Host && req.URL.RawPath == "" && (part == "" || onward.MatchString(part)) {
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
				// It answered a while ago. Perhaps it went away since.
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

// name says what a tag stands for, or that there is such a manifest. A pull asks this first, and while a registry
// answers it is the one to say so, and to say who may have it. Where none does, an agent believes servers before it
// believes what was imported on itself, which may be older.
func (p *puller) name(ctx context.Context, w want) *http.Response {
	s := p.share
	if s.answers(ctx, p.hosts) {
		return nil
	}
	own, imported := p.own(ctx, w)
	if imported && (w.digest != "" || s.nodes.selfIsServer()) {
		return s.sayOwn(w, own)
	}
	if resp := p.elsewhere(ctx, w); resp != nil {
		return resp
	}
	if imported {
		return s.sayOwn(w, own)
	}
	return nil
}

// own is what was imported on this node.
func (p *puller) own(ctx context.Context, w want) (ocispec.Descriptor, bool) {
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

// sayOwn answers with what was imported. The content is there, so nothing else will be asked for.
func (s *Share) sayOwn(w want, d ocispec.Descriptor) *http.Response {
	s.log.Info("the registry does not answer, going on with what was imported on this node", "image", w.place(), "tag", w.tag, "digest", d.Digest)
	h := http.Header{}
	h.Set("Content-Type", d.MediaType)
	h.Set("Docker-Content-Digest", d.Digest.String())
	return response(http.StatusOK, h, d.Size, http.NoBody)
}

// elsewhere asks other nodes for a name.
func (p *puller) elsewhere(ctx context.Context, w want) *http.Response {
	s := p.share
	if w.digest != "" {
		// Any node may say so, but only the manifest itself says how long it is and of what type.
		resp := insist(ctx, namePatience, func() (*http.Response, bool) { return p.once(ctx, w, "", true) })
		if resp == nil {
			return nil
		}
		s.say(w, w.digest.String(), "")
		return response(resp.StatusCode, resp.Header, resp.ContentLength, http.NoBody)
	}
	return insist(ctx, namePatience, func() (_ *http.Response, again bool) {
		answers, enough := s.ask(ctx, w, s.nodes.candidates(w.place(), true, true))
		defer enough()
		for a := range answers {
			if a.has != nil {
				s.say(w, a.has.Header.Get("Docker-Content-Digest"), a.node)
				return response(a.has.StatusCode, a.has.Header, a.has.ContentLength, http.NoBody), false
			}
			again = again || a.again
		}
		return nil, again
	})
}

// insist asks again and again, ever less often, while that may be worth while.
func insist(ctx context.Context, patience time.Duration, ask func() (_ *http.Response, again bool)) *http.Response {
	pauses := retry.Backoff{Limit: 8 * time.Second, Spread: true}
	for until := time.Now().Add(patience); ; {
		resp, again := ask()
		if resp != nil || !again || ctx.Err() != nil || time.Now().After(until) {
			return resp
		}
		if pauses.Wait(ctx) != nil {
			return nil
		}
	}
}

// say logs what a registry would have been asked for.
func (s *Share) say(w want, digest, server string) {
	s.log.Info("the registry does not answer, going on with what other nodes have", "image", w.place(), "tag", w.tag, "digest", digest, "server", server)
}

// content takes a blob or a manifest from a neighbour. Where there is no registry to turn to, it waits for those that
// are busy: others will have it then too.
func (p *puller) content(ctx context.Context, w want, part string) *http.Response {
	resp, _ := p.once(ctx, w, part, false)
	if resp != nil || ctx.Err() != nil || p.share.answers(ctx, p.hosts) {
		return resp
	}
	return insist(ctx, patience, func() (*http.Response, bool) { return p.once(ctx, w, part, true) })
}

// once asks all candidates; again says whether it may be worth while to do so later.
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
			raw, err := io.ReadAll(io.LimitReader(resp.Body, largestManifest+1))
			_ = resp.Body.Close()
			t, ok := mediaType(raw)
			if err != nil || !ok {
				continue // the next one
			}
			resp.Header.Set("Content-Type", t)
			resp.Body = io.NopCloser(bytes.NewReader(raw))
		}
		s.count.blobs.Add(1)
		s.log.Debug("taken from a neighbour", "node", a.node, "repository", w.place(), "digest", w.digest)
		return response(resp.StatusCode, resp.Header, resp.ContentLength, resp.Body), false
	}
	return nil, again
}

// response is a neighbour's answer with what a pull needs of it, and nothing else.
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
