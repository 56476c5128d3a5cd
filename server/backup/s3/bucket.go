package s3

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"golang.org/x/sync/errgroup"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/httpproxy"
)

// Errors of objects.
var (
	ErrNotFound = errors.New("no such object")
	ErrDamaged  = errors.New("the object differs from what was uploaded")
	ErrTaken    = errors.New("a different file has that name; set a separate snapshot-s3-folder for each cluster")
)

const (
	// Metadata of an object; the header names have the prefix x-amz-meta-.
	metaSum  = "Umiak-Sha256"
	metaInfo = "Umiak-Info"

	maxRetries = 3 // of one request
	maxHeads   = 8 // parallel requests for descriptions
	// maxObjects bounds the objects in a folder.
	maxObjects = 10_000
)

// Object describes an object in the bucket. Info is the description given to Upload, "" for an object that another
// program created.
type Object struct {
	Name string // file name, without the folder
	Size int64
	Sum  string // SHA-256 of the file in hex
	Info string
}

// Bucket is a client of one folder of a bucket.
type Bucket struct {
	cfg    Config
	client *minio.Client
}

// Open returns a client. It does not connect yet.
func Open(cfg Config) (*Bucket, error) {
	creds, err := cfg.credentials()
	if err != nil {
		return nil, err
	}
	proxy := httpproxy.Proxy()
	if cfg.Proxy != "" {
		u, err := url.Parse(cfg.Proxy)
		if err != nil {
			return nil, errors.New("snapshot-s3-proxy: it is not a URL") // it may hold a password
		}
		proxy = http.ProxyURL(u)
	}
	transport := &http.Transport{
		Proxy: proxy, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second,
		ResponseHeaderTimeout: time.Minute, IdleConnTimeout: 5 * time.Second, MaxIdleConnsPerHost: maxHeads,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: cfg.SkipSSLVerify},
	}
	if cfg.EndpointCA != "" || cfg.endpointPEM != "" {
		pem := []byte(cfg.endpointPEM)
		if cfg.EndpointCA != "" {
			raw, err := os.ReadFile(cfg.EndpointCA)
			if err != nil {
				return nil, fmt.Errorf("snapshot-s3-endpoint-ca: %w", err)
			}
			pem = append(append(pem, '\n'), raw...)
		}
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("snapshot-s3-endpoint-ca: %s holds no certificate",
				cmp.Or(cfg.EndpointCA, "the text"))
		}
		transport.TLSClientConfig.RootCAs = roots
	}
	client, err := minio.New(cfg.Endpoint, &minio.Options{
		Creds: creds, Secure: !cfg.Insecure, BucketLookup: lookups[cfg.Lookup],
		Transport: transport, Region: cfg.Region, MaxRetries: maxRetries,
	})
	if err != nil {
		return nil, fmt.Errorf("snapshot-s3-endpoint: %q: %w", cfg.Endpoint, err)
	}
	return &Bucket{cfg: cfg, client: client}, nil
}

// String returns the URI and the server.
func (b *Bucket) String() string { return b.cfg.Place() }

func (b *Bucket) key(name string) string { return path.Join(b.cfg.Folder, name) }

// limited returns a context with the timeout of one operation.
func (b *Bucket) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, b.cfg.Timeout,
		fmt.Errorf("it took longer than snapshot-s3-timeout, %s", b.cfg.Timeout))
}

// fail wraps an error with the operation and the object. It replaces a context's error by its cause.
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
		err = fmt.Errorf(
			"the server refuses it: %s: %w; check snapshot-s3-access-key, the secret key, and their permissions (without "+
				"these settings: the AWS_* variables, or the machine's role)", r.Code, err)
	case r.Code != "":
		err = fmt.Errorf("the server refuses it: %s: %w", r.Code, err)
	}
	return fmt.Errorf("%s %s: %w", verb, where, err)
}

// Stat returns the description of one object.
func (b *Bucket) Stat(ctx context.Context, name string) (Object, error) {
	ctx, cancel := b.limited(ctx)
	defer cancel()
	o, err := b.stat(ctx, name)
	return o, b.fail(ctx, "stat", name, err)
}

func (b *Bucket) stat(ctx context.Context, name string) (Object, error) {
	st, err := b.client.StatObject(ctx, b.cfg.Bucket, b.key(name), minio.StatObjectOptions{})
	if err != nil {
		return Object{}, err
	}
	return Object{Name: name, Size: st.Size, Sum: st.UserMetadata[metaSum], Info: st.UserMetadata[metaInfo]}, nil
}

// List returns the folder's objects whose names end with suffix.
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
			return nil, b.fail(ctx, "list", "",
				fmt.Errorf("more than %d snapshots; set a separate snapshot-s3-folder for this cluster", maxObjects))
		}
		out = append(out, Object{Name: name, Size: o.Size})
	}
	// S3's list has no metadata: request it per object.
	g, of := errgroup.WithContext(ctx)
	g.SetLimit(maxHeads)
	gone := make([]bool, len(out))
	for i := range out {
		g.Go(func() error {
			o, err := b.stat(of, out[i].Name)
			if gone[i] = minio.ToErrorResponse(err).Code == minio.NoSuchKey; gone[i] {
				return nil // removed meanwhile
			}
			if err != nil {
				return b.fail(of, "stat", out[i].Name, err)
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

// Upload stores a file under its name, with a description. It does nothing if the same file is there, and returns
// ErrTaken if another one is.
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
	// With MD5, which every server supports, a part that was corrupted in transit is refused.
	_, err = b.client.PutObject(ctx, b.cfg.Bucket, b.key(name), f, size, minio.PutObjectOptions{
		ContentType: "application/octet-stream", SendContentMd5: true,
		UserMetadata: map[string]string{metaSum: sum, metaInfo: info},
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

// Download writes an object to a new file. The file gets its name once it is complete and verified.
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
		_ = tmp.Close() // the second close after success
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
	// An object of another program has no checksum; a snapshot also has one inside.
	if o.Sum != "" && o.Sum != hex.EncodeToString(h.Sum(nil)) {
		return fmt.Errorf("%w: its SHA-256 differs", ErrDamaged)
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
	return b.fail(
		ctx, "remove", name, b.client.RemoveObject(ctx, b.cfg.Bucket, b.key(name), minio.RemoveObjectOptions{}))
}
