package containerd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"sync"

	"github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/streaming"
	coretransfer "github.com/containerd/containerd/v2/core/transfer"
	transferimage "github.com/containerd/containerd/v2/core/transfer/image"
	ociregistry "github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/plugin"
	"github.com/containerd/typeurl/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry resolves the name of a registry to the hosts from which its images are fetched.
//
// Upstream reads this from hosts.toml files, which support neither rewrites nor the "*" mirror of k3s's
// registries.yaml. Every pull, by the CRI service and by ctr, is one call of the transfer plugin with the image's name
// and the pod's credentials; the wrapper in this file replaces the source of that call.
type Registry interface {
	// Hosts returns the hosts to try for a registry, in order. credentials are those of the request (a pod's
	// imagePullSecrets); they take precedence over the node's own.
	Hosts(registry string, credentials Credentials) ([]docker.RegistryHost, error)
}

// Credentials returns the user name and password for a host, or an empty name and a token, or two empty strings if
// there are none.
type Credentials = func(host string) (user, secret string, err error)

func wrapTransfer(ic *plugin.InitContext, inner func(*plugin.InitContext) (any, error), r Registry) (any, error) {
	v, err := inner(ic)
	if err != nil || r == nil {
		return v, err
	}
	t, ok := v.(coretransfer.Transferrer)
	if !ok {
		return nil, fmt.Errorf("wrap containerd's transfer plugin: unexpected type %T", v)
	}
	return &transferrer{Transferrer: t, registry: r}, nil
}

type transferrer struct {
	coretransfer.Transferrer
	registry Registry
}

func (t *transferrer) Transfer(ctx context.Context, source, destination any, opts ...coretransfer.Opt) error {
	from, pull := source.(*ociregistry.OCIRegistry)
	if !pull {
		return t.Transferrer.Transfer(ctx, source, destination, opts...)
	}
	// The name, headers and credentials of the pull are unexported fields of from. Marshal it, as for a transfer
	// service in another process, and read them from the message.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	creds := &credentials{done: ctx.Done()}
	any, err := from.MarshalAny(ctx, creds)
	if err != nil {
		return err
	}
	defer creds.Close()
	var spec transfer.OCIRegistry
	if err := typeurl.UnmarshalTo(any, &spec); err != nil {
		return err
	}
	headers := http.Header{}
	for k, v := range spec.GetResolver().GetHeaders() {
		headers.Set(k, v)
	}
	ask := func(host string) (string, string, error) { return creds.get(spec.Reference, host) }
	if to, ok := destination.(*transferimage.Store); ok {
		destination = pinnedDestination{to}
	}
	return t.Transferrer.Transfer(ctx, &image{
		name: spec.Reference,
		resolver: docker.NewResolver(docker.ResolverOptions{
			Hosts:   func(host string) ([]docker.RegistryHost, error) { return t.registry.Hosts(host, ask) },
			Headers: headers,
		}),
	}, destination, opts...)
}

// pinnedDestination is the destination of a pull. Upstream's destination replaces the labels of an existing image, so
// an imported image that is pulled again (imagePullPolicy Always) would lose its pin and be garbage-collected.
type pinnedDestination struct{ *upstreamStore }

type upstreamStore = transferimage.Store

// Store implements transfer.ImageStorer.
func (k pinnedDestination) Store(
	ctx context.Context, desc ocispec.Descriptor, store images.Store,
) ([]images.Image, error) {
	return k.upstreamStore.Store(ctx, desc, pinStore{store})
}

// pinStore is an image store that keeps the pin of an image whose digest an update does not change.
type pinStore struct{ images.Store }

// Update implements images.Store.
func (s pinStore) Update(ctx context.Context, img images.Image, fieldpaths ...string) (images.Image, error) {
	if len(fieldpaths) > 0 {
		return s.Store.Update(ctx, img, fieldpaths...)
	}
	old, err := s.Get(ctx, img.Name)
	if err != nil {
		return images.Image{}, err
	}
	if old.Target.Digest == img.Target.Digest && old.Labels[pinnedLabel] == pinnedValue {
		labels := maps.Clone(img.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		labels[pinnedLabel] = pinnedValue
		img.Labels = labels
	}
	return s.Store.Update(ctx, img)
}

// image is the source of a pull.
type image struct {
	name     string
	resolver remotes.Resolver
}

var (
	_ coretransfer.ImageFetcher              = (*image)(nil)
	_ coretransfer.ImageResolverOptionSetter = (*image)(nil)
)

func (i *image) String() string { return "registry image " + i.name }
func (i *image) Image() string  { return i.name }

func (i *image) Resolve(ctx context.Context) (string, ocispec.Descriptor, error) {
	return i.resolver.Resolve(ctx, i.name)
}

func (i *image) Fetcher(ctx context.Context, ref string) (coretransfer.Fetcher, error) {
	return i.resolver.Fetcher(ctx, ref)
}

func (i *image) SetResolverOptions(opts ...coretransfer.ImageResolverOption) {
	if r, ok := i.resolver.(remotes.ResolverWithOptions); ok {
		r.SetOptions(opts...)
	}
}

// credentials asks an OCIRegistry object for credentials over the stream on which the object answers. It creates that
// stream and is its other end.
type credentials struct {
	done <-chan struct{}

	mu     sync.Mutex // serializes questions
	stream *pipe
}

var _ streaming.StreamCreator = (*credentials)(nil)

// Create implements streaming.StreamCreator. The registry object calls it once, if it has credentials.
func (c *credentials) Create(context.Context, string) (streaming.Stream, error) {
	c.stream = &pipe{questions: make(chan typeurl.Any), answers: make(chan typeurl.Any), none: make(chan struct{}),
		closed: make(chan struct{})}
	return c.stream, nil
}

// Close ends the goroutine of the registry object that answers.
func (c *credentials) Close() {
	if c.stream != nil {
		_ = c.stream.Close()
	}
}

func (c *credentials) get(reference, host string) (user, secret string, err error) {
	if c.stream == nil {
		return "", "", nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	q, err := typeurl.MarshalAny(&transfer.AuthRequest{Host: host, Reference: reference})
	if err != nil {
		return "", "", err
	}
	var a typeurl.Any
	select {
	case c.stream.questions <- q:
	case <-c.done:
		return "", "", context.Canceled
	}
	select {
	case a = <-c.stream.answers:
	case <-c.stream.none:
		return "", "", fmt.Errorf("no usable credentials for %s", host)
	case <-c.done:
		return "", "", context.Canceled
	}
	var answer transfer.AuthResponse
	if err := typeurl.UnmarshalTo(a, &answer); err != nil {
		return "", "", err
	}
	return answer.Username, answer.Secret, nil
}

var errClosed = errors.New("the pull has ended")

// pipe is the registry object's end of the stream. The object calls Recv for the next question after an answer, but
// also after a question that it could not answer; asked distinguishes the two.
type pipe struct {
	questions, answers chan typeurl.Any
	none               chan struct{}
	asked              bool
	once               sync.Once
	closed             chan struct{}
}

func (p *pipe) Recv() (typeurl.Any, error) {
	if p.asked {
		p.asked = false
		select {
		case p.none <- struct{}{}:
		case <-p.closed:
			return nil, errClosed
		}
	}
	select {
	case q := <-p.questions:
		p.asked = true
		return q, nil
	case <-p.closed:
		return nil, errClosed
	}
}

func (p *pipe) Send(a typeurl.Any) error {
	select {
	case p.answers <- a:
		p.asked = false
		return nil
	case <-p.closed:
		return errClosed
	}
}

func (p *pipe) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}
