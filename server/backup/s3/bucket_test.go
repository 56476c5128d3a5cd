package s3_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/umiak-io/umiak/internal/testing/s3server"
	"github.com/umiak-io/umiak/server/backup/s3"
)

func open(t *testing.T, c s3.Config) *s3.Bucket {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := s3.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func file(t *testing.T, name string, data []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// large takes more than one part.
var large = bytes.Repeat([]byte("0123456789abcdef"), 20<<16)

func TestRoundTrip(t *testing.T) {
	srv := s3server.Start(t)
	key := file(t, "key", []byte(srv.Config.SecretKey+"\n"))
	cfg := srv.Config
	cfg.SecretKey, cfg.SecretKeyFile = "", key
	b := open(t, cfg)
	for name, data := range map[string][]byte{"a.snap": []byte("one"), "b.snap": large, "c.other": []byte("x"),
		"empty.snap": nil} {
		from := file(t, name, data)
		for range 2 { // the second finds it there
			if err := b.Upload(t.Context(), from, "info of "+name); err != nil {
				t.Fatal(err)
			}
		}
		to := filepath.Join(t.TempDir(), "to")
		if err := b.Download(t.Context(), name, to); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(to)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(data), err)
		}
		if st, err := os.Stat(to); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
	}
	other := cfg
	other.Folder = "clusters/pi/deeper"
	if err := open(t, other).Upload(t.Context(), file(t, "d.snap", []byte("d")), ""); err != nil {
		t.Fatal(err)
	}
	list, err := b.List(t.Context(), ".snap")
	if err != nil || len(list) != 3 || list[0].Name != "a.snap" || list[0].Size != 3 ||
		list[0].Info != "info of a.snap" || len(list[0].Sum) != 64 {
		t.Errorf("%+v, %v", list, err)
	}
	if err := b.Upload(t.Context(), file(t, "a.snap", []byte("two")), ""); !errors.Is(err, s3.ErrTaken) {
		t.Errorf("another file of that name: %v", err)
	}
	if err := b.Remove(t.Context(), "a.snap"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Stat(t.Context(), "a.snap"); !errors.Is(err, s3.ErrNotFound) {
		t.Errorf("removed: %v", err)
	}
	if err := b.Download(t.Context(), "a.snap", filepath.Join(t.TempDir(), "to")); !errors.Is(err, s3.ErrNotFound) {
		t.Errorf("removed: %v", err)
	}
}

// secret is a Secret of kube-system, whatever its name.
type secret map[string][]byte

func (s secret) Secret(context.Context, string) (map[string][]byte, error) { return s, nil }
func (secret) ConfigMap(context.Context, string) (map[string]string, error) {
	return nil, errors.ErrUnsupported
}

// tunnels is an HTTP proxy that counts the connections which it has made.
func tunnels(t *testing.T) (address string, made *atomic.Int32) {
	t.Helper()
	made = &atomic.Int32{}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to, err := new(net.Dialer).DialContext(r.Context(), "tcp", r.Host)
		if err != nil || r.Method != http.MethodConnect {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer to.Close()
		w.WriteHeader(http.StatusOK)
		from, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer from.Close()
		made.Add(1)
		go func() { _, _ = io.Copy(to, buffered) }()
		_, _ = io.Copy(from, to)
	}))
	t.Cleanup(proxy.Close)
	return proxy.URL, made
}

// TestSettingsOfASecret takes the settings of a Secret, the keys of the environment, and the way through a proxy.
func TestSettingsOfASecret(t *testing.T) {
	srv := s3server.Start(t)
	ca, err := os.ReadFile(srv.Config.EndpointCA)
	if err != nil {
		t.Fatal(err)
	}
	proxy, made := tunnels(t)
	t.Setenv("AWS_ACCESS_KEY_ID", srv.Config.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", srv.Config.SecretKey)
	cfg, err := s3.Config{ConfigSecret: "bucket", Timeout: time.Minute}.Resolve(t.Context(), secret{
		"etcd-s3-endpoint": []byte(srv.Config.Endpoint), "etcd-s3-endpoint-ca": ca, "etcd-s3-region": []byte("us-east-1"),
		"etcd-s3-bucket": []byte(srv.Config.Bucket), "etcd-s3-folder": []byte("pi\n"), "etcd-s3-proxy": []byte(proxy),
		"etcd-s3-bucket-lookup-type": []byte("path"),
	})
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, cfg)
	if err := b.Upload(t.Context(), file(t, "a.snap", []byte("one")), ""); err != nil {
		t.Fatal(err)
	}
	if list, err := b.List(t.Context(), ".snap"); err != nil || len(list) != 1 || made.Load() == 0 {
		t.Errorf("%+v, %v, %d connections through the proxy", list, err, made.Load())
	}
	cfg.Lookup = "dns" // the bucket's name before the address is no host
	if _, err := open(t, cfg).List(t.Context(), ".snap"); err == nil {
		t.Error("the lookup type has no effect")
	}
}

// TestErrorsSayWhere also asks that none holds the key.
func TestErrorsSayWhere(t *testing.T) {
	srv := s3server.Start(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() }) // the parts run after this function has returned
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	for name, c := range map[string]struct {
		change func(*s3.Config)
		want   string
	}{
		"wrong key":      {func(c *s3.Config) { c.SecretKey = "wr0ng-key" }, "SignatureDoesNotMatch"},
		"wrong id":       {func(c *s3.Config) { c.AccessKey = "nobody" }, "snapshot-s3-access-key"},
		"no such bucket": {func(c *s3.Config) { c.Bucket = "none" }, "NoSuchBucket"},
		"no CA":          {func(c *s3.Config) { c.EndpointCA = "" }, "x509: certificate signed by unknown authority"},
		"nobody there":   {func(c *s3.Config) { c.Endpoint = closed.Addr().String() }, "connection refused"},
		"silence": {func(c *s3.Config) { c.Endpoint, c.Timeout = silent.Addr().String(), 300*time.Millisecond },
			"snapshot-s3-timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := srv.Config
			c.change(&cfg)
			b := open(t, cfg)
			_, list := b.List(t.Context(), "")
			for what, err := range map[string]error{
				"upload": b.Upload(t.Context(), file(t, "a.snap", []byte("x")), ""), "list": list,
			} {
				if err == nil {
					t.Fatalf("%s went well", what)
				}
				text := err.Error()
				for _, want := range []string{what, cfg.Endpoint, "s3://" + cfg.Bucket + "/" + cfg.Folder, c.want} {
					// a HEAD's answer has no text
					if !strings.Contains(text, want) && (want != c.want || what != "upload") {
						t.Errorf("%q is not in %s", want, text)
					}
				}
				if what == "upload" && !strings.Contains(text, "a.snap") {
					t.Errorf("no object in %s", text)
				}
				for _, secret := range []string{srv.Config.SecretKey, "wr0ng-key"} {
					if strings.Contains(text, secret) {
						t.Errorf("the key is in %s", text)
					}
				}
			}
		})
	}
	t.Run("not verified", func(t *testing.T) {
		cfg := srv.Config
		cfg.EndpointCA, cfg.SkipSSLVerify = "", true
		if _, err := open(t, cfg).List(t.Context(), ""); err != nil {
			t.Error(err)
		}
	})
}

func TestWhatIsNotWholeIsRefused(t *testing.T) {
	srv := s3server.Start(t)
	b := open(t, srv.Config)
	if err := b.Upload(t.Context(), file(t, "a.snap", large), ""); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	refused := func(what string, b *s3.Bucket, want string) {
		t.Helper()
		err := b.Download(t.Context(), "a.snap", filepath.Join(dir, "to"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%s: left %v", what, left)
		}
	}
	// A proxy that ends the connection in the middle of an object.
	to := &url.URL{Scheme: "https", Host: srv.Config.Endpoint}
	plain := srv.Config
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { host := r.In.Host; r.SetURL(to); r.Out.Host = host },
		ErrorLog:  log.New(io.Discard, "", 0),
		Transport: &http.Transport{TLSClientConfig: trusting(t, srv.Config.EndpointCA)},
		ModifyResponse: func(r *http.Response) error {
			if n, _ := strconv.Atoi(r.Header.Get("Content-Length")); r.Request.Method == http.MethodGet && n > 1<<20 {
				r.Body = cut{r.Body, new(int)}
			}
			return nil
		},
	})
	defer proxy.Close()
	plain.Endpoint, plain.EndpointCA, plain.Insecure = strings.TrimPrefix(proxy.URL, "http://"), "", true
	refused("cut off", open(t, plain), "a.snap")

	stored := filepath.Join(srv.Dir, srv.Config.Folder, "a.snap")
	f, err := os.OpenFile(stored, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("!"), 1000); err != nil {
		t.Fatal(err)
	}
	refused("altered", b, s3.ErrDamaged.Error())
	if err := errors.Join(f.Truncate(5000), f.Close()); err != nil {
		t.Fatal(err)
	}
	refused("truncated", b, s3.ErrDamaged.Error())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Download(ctx, "a.snap", filepath.Join(dir, "to")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestValidate(t *testing.T) {
	good := s3.Config{Bucket: "snaps", Endpoint: "s3.amazonaws.com", Region: "us-east-1", AccessKey: "a",
		SecretKey: "s3cr3t", Timeout: time.Minute}
	if err := errors.Join(good.Validate(),
		(s3.Config{Endpoint: "s3.amazonaws.com", Region: "us-east-1", Timeout: time.Minute}).Validate()); err != nil {
		t.Fatal(err)
	}
	for key, change := range map[string]func(*s3.Config){
		"bucket":          func(c *s3.Config) { c.Bucket = "Snaps" },
		"endpoint":        func(c *s3.Config) { c.Endpoint = "https://minio:9000" },
		"folder":          func(c *s3.Config) { c.Folder = "/a/../b" },
		"access-key":      func(c *s3.Config) { c.AccessKey = "" },
		"secret-key-file": func(c *s3.Config) { c.SecretKeyFile = "/etc/key" },
		"endpoint-ca":     func(c *s3.Config) { c.EndpointCA = "ca.crt" },
		"insecure":        func(c *s3.Config) { c.Insecure, c.EndpointCA = true, "/etc/ca" },
		"timeout":         func(c *s3.Config) { c.Timeout = 0 },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), "snapshot-s3-"+key+": ") ||
			strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s: %v", key, err)
		}
	}
	forgotten := good
	forgotten.Bucket = ""
	if err := forgotten.Validate(); err == nil || !strings.Contains(err.Error(), "snapshot-s3-bucket") {
		t.Errorf("no bucket: %v", err)
	}
	for what, c := range map[string]s3.Config{
		"no file": {SecretKeyFile: "/none"}, "empty": {SecretKeyFile: file(t, "key", []byte("\n"))},
		"long":  {SecretKeyFile: file(t, "key", make([]byte, 5000))},
		"no CA": {EndpointCA: "/none"}, "no certificate": {EndpointCA: file(t, "ca", []byte("x"))},
	} {
		c.Bucket, c.Endpoint, c.AccessKey = "snaps", "localhost", "a"
		if _, err := s3.Open(c); err == nil || !strings.Contains(err.Error(), "snapshot-s3-") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
