package s3

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"golang.org/x/sync/errgroup"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/httpproxy"
)

// What can be wrong; errors wrap one of these.
var (
	ErrNotFound = errors.New("there is no such object")
	ErrDamaged  = errors.New("the object is not what was uploaded")
	ErrTaken    = errors.New("another file has that name there; give each cluster a snapshot-s3-folder of its own")
)

const (
	// Headers beside the object, after x-amz-meta-.
	metaSum  = "Umiak-Sha256"
	metaInfo = "Umiak-Info"

	retries = 3 // of a request
	heads   = 8 // descriptions that are read at a time
	// maxObjects is how many a folder may hold for us to look at all.
	maxObjects = 10_000
)

// Object is what lies in the bucket. Info is the description that Upload was given, empty where
// somebody else has put the object there.
type Object struct {
	Name string // of the file, without the folder
	Size int64
	Sum  string // SHA-256 of the file in hex
	Info string
}

// Bucket is a folder of a bucket.
type Bucket struct {
	cfg    Config
	client *minio.Client
}

// Open connects to nothing yet.
func Open(cfg Config) (*Bucket, error) {
	secret, err := cfg.secret()
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy: httpproxy.Proxy(), ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second,
		ResponseHeaderTimeout: time.Minute, IdleConnTimeout: 5 * time.Second, MaxIdleConnsPerHost: heads,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: cfg.SkipSSLVerify},
	}
	if cfg.EndpointCA != "" {
		pem, err := os.ReadFile(cfg.EndpointCA)
		if err != nil {
			return nil, fmt.Errorf("snapshot-s3-endpoint-ca: %w", err)
		}
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("snapshot-s3-endpoint-ca: %s holds no certificate", cfg.EndpointCA)
		}
		transport.TLSClientConfig.RootCAs = roots
	}
	client, err := minio.New(cfg.Endpoint, &minio.Options{
		Creds: credentials.NewStaticV4(cfg.AccessKey, secret, ""), Secure: !cfg.Insecure,
		Transport: transport, Region: cfg.Region, MaxRetries: retries,
	})
	if err != nil {
		return nil, fmt.Errorf("snapshot-s3-endpoint: %q: %w", cfg.Endpoint, err)
	}
	return &Bucket{cfg: cfg, client: client}, nil
}

// String says where it is.
func (b *Bucket) String() string {
	return "s3://" + path.Join(b.cfg.Bucket, b.cfg.Folder) + " at " + b.cfg.Endpoint
}

func (b *Bucket) key(name string) string { return path.Join(b.cfg.Folder, name) }

// limited is a context for one operation.
func (b *Bucket) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, b.cfg.Timeout, fmt.Errorf("it took longer than snapshot-s3-timeout, %s", b.cfg.Timeout))
}

// fail says what was tried where. A context's own error says nothing of why it ended.
func (b *Bucket) fail(ctx context.Context, verb, name string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	where := b.String()
	if name != "" {
		where = "s3://" + path.Join(b.cfg.Bucket, b.key(name)) + " at " + b.cfg.Endpoint
	}
	switch r := minio.ToErrorResponse(err); {
	case r.Code == minio.NoSuchKey:
		err = ErrNotFound
	case r.StatusCode == http.StatusForbidden || r.StatusCode == http.StatusNotFound && r.Code != minio.NoSuchBucket:
		err = fmt.Errorf("the server refuses it: %s: %w; look at snapshot-s3-access-key, at the secret key, and at what they allow", r.Code, err)
	case r.Code != "":
		err = fmt.Errorf("the server refuses it: %s: %w", r.Code, err)
	}
	return fmt.Errorf("%s %s: %w", verb, where, err)
}

// Stat describes one object.
func (b *Bucket) Stat(ctx context.Context, name string) (Object, error) {
	ctx, cancel := b.limited(ctx)
	defer cancel()
	o, err := b.stat(ctx, name)
	return o, b.fail(ctx, "look at", name, err)
}

func (b *Bucket) stat(ctx context.Context, name string) (Object, error) {
	st, err := b.client.StatObject(ctx, b.cfg.Bucket, b.key(name), minio.StatObjectOptions{})
	if err != nil {
		return Object{}, err
	}
	return Object{Name: name, Size: st.Size, Sum: st.UserMetadata[metaSum], Info: st.UserMetadata[metaInfo]}, nil
}

// List returns the objects of the folder whose names end with suffix.
func (b *Bucket) List(ctx context.Context, suffix string) ([]Object, error) {
	ctx, cancel := b.limited(ctx)
	defer cancel()
	prefix := ""
	if b.cfg.Folder != "" {
		prefix = b.cfg.Folder + "/"
	}
	var out []Object
	for o := range b.client.ListObjectsIter(ctx, b.cfg.Bucket, minio.ListObjectsOptions{Prefix: prefix}) {
		name := strings.TrimPrefix(o.Key, prefix)
		switch {
		case o.Err != nil:
			return nil, b.fail(ctx, "list", "", o.Err)
		case strings.Contains(name, "/") || !strings.HasSuffix(name, suffix):
			continue
		case len(out) == maxObjects:
			return nil, b.fail(ctx, "list", "", fmt.Errorf("there are more than %d snapshots; give this cluster a snapshot-s3-folder of its own", maxObjects))
		}
		out = append(out, Object{Name: name, Size: o.Size})
	}
	// A list has no descriptions.
	g, of := errgroup.WithContext(ctx)
	g.SetLimit(heads)
	gone := make([]bool, len(out))
	for i := range out {
		g.Go(func() error {
			o, err := b.stat(of, out[i].Name)
			if gone[i] = minio.ToErrorResponse(err).Code == minio.NoSuchKey; gone[i] {
				return nil // removed meanwhile
			}
			if err != nil {
				return b.fail(of, "look at", out[i].Name, err)
			}
			out[i] = o
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	there := out[:0]
	for i, o := range out {
		if !gone[i] {
			there = append(there, o)
		}
	}
	return there, nil
}

// Upload puts a file there under its own name, with a description. One that is there already is left as it is.
func (b *Bucket) Upload(ctx context.Context, file, info string) error {
	ctx, cancel := b.limited(ctx)
	defer cancel()
	name := filepath.Base(file)
	return b.fail(ctx, "upload "+file+" to", name, b.upload(ctx, file, name, info))
}

func (b *Bucket) upload(ctx context.Context, file, name, info string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return err
	}
	sum := hex.EncodeToString(h.Sum(nil))
	switch there, err := b.stat(ctx, name); {
	case err == nil && there.Sum == sum && there.Size == size:
		return nil
	case err == nil:
		return ErrTaken
	case minio.ToErrorResponse(err).Code != minio.NoSuchKey:
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	// With the MD5 sum, which every server knows, a part that was changed on the way is refused.
	_, err = b.client.PutObject(ctx, b.cfg.Bucket, b.key(name), f, size, minio.PutObjectOptions{
		ContentType: "application/octet-stream", SendContentMd5: true, UserMetadata: map[string]string{metaSum: sum, metaInfo: info},
	})
	if err != nil {
		return err
	}
	if there, err := b.stat(ctx, name); err != nil {
		return err
	} else if there.Size != size || there.Sum != sum {
		return fmt.Errorf("%w: it has %d bytes of %d and the sum %q", ErrDamaged, there.Size, size, there.Sum)
	}
	return nil
}

// Download writes an object to a file that is not there yet. It has the name when all of it is there and is
// what was uploaded.
func (b *Bucket) Download(ctx context.Context, name, file string) error {
	ctx, cancel := b.limited(ctx)
	defer cancel()
	return b.fail(ctx, "download", name, b.download(ctx, name, file))
}

func (b *Bucket) download(ctx context.Context, name, file string) (err error) {
	o, err := b.stat(ctx, name)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".download-*.tmp") // 0600
	if err != nil {
		return err
	}
	defer func() {
		_ = tmp.Close() // a second time where it went well
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	r, err := b.client.GetObject(ctx, b.cfg.Bucket, b.key(name), minio.GetObjectOptions{})
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // only read
	h := sha256.New()
	size, err := io.Copy(io.MultiWriter(tmp, h), io.LimitReader(r, o.Size+1))
	if err != nil {
		return fmt.Errorf("%w after %d bytes of %d", err, size, o.Size)
	}
	if size != o.Size {
		return fmt.Errorf("%w: it has %d bytes of %d", ErrDamaged, size, o.Size)
	}
	// Who has put it there by hand told no sum; a snapshot has one inside too.
	if o.Sum != "" && o.Sum != hex.EncodeToString(h.Sum(nil)) {
		return fmt.Errorf("%w: its SHA-256 is another", ErrDamaged)
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), file); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(file))
}

// Remove removes an object.
func (b *Bucket) Remove(ctx context.Context, name string) error {
	ctx, cancel := b.limited(ctx)
	defer cancel()
	return b.fail(ctx, "remove", name, b.client.RemoveObject(ctx, b.cfg.Bucket, b.key(name), minio.RemoveObjectOptions{}))
}
