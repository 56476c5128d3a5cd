package containerd_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/umiak-io/umiak/internal/testing/eventually"
)

const (
	user, password = "reader", "s3cret"
	registryPort   = "5443"
)

// serveRegistry runs a registry inside the node's network: TLS with its own CA, one user. It holds the
// archive that the test left, as cache/box:1.
func serveRegistry(cfg childConfig) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(cfg.Dirs.Data, "ca.crt"),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return err
	}
	inner := registry.New()
	l, err := tls.Listen("tcp", "127.0.0.1:"+registryPort,
		&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		return err
	}
	guarded := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	})
	go func() { _ = http.Serve(l, guarded) }()

	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(plain, inner) }()
	img, err := tarball.ImageFromPath(filepath.Join(cfg.Dirs.Data, "box.tar"), nil)
	if err != nil {
		return err
	}
	return push("http://"+plain.Addr().String()+"/v2/cache/box", "1", img)
}

// push is a registry client of a few lines.
func push(repository, tag string, img v1.Image) error {
	put := func(url, mediaType string, body []byte) error {
		req, err := http.NewRequest(http.MethodPut, url, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", mediaType)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusCreated {
			return fmt.Errorf("%s: %s", url, resp.Status)
		}
		return nil
	}
	blob := func(digest v1.Hash, body []byte) error {
		resp, err := http.Post(repository+"/blobs/uploads/", "", nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		at, err := resp.Location()
		if err != nil {
			return err
		}
		return put(at.String()+"?digest="+digest.String(), "application/octet-stream", body)
	}
	for _, l := range must(img.Layers()) {
		r := must(l.Compressed())
		if err := blob(must(l.Digest()), must(io.ReadAll(r))); err != nil {
			return err
		}
	}
	if err := blob(must(img.ConfigName()), must(img.RawConfigFile())); err != nil {
		return err
	}
	return put(repository+"/manifests/"+tag, string(must(img.MediaType())), must(img.RawManifest()))
}

// Every registry is one mirror under another name, with TLS and credentials; all of it may change while
// the node runs.
func TestPullsThroughRegistriesYAML(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := tarball.WriteToFile(filepath.Join(n.cfg.Dirs.Data, "box.tar"), must(name.NewTag("box:1")),
		busybox(t)); err != nil {
		t.Fatal(err)
	}
	n.cfg.Registry = true
	n.start()
	c := n.client()
	pull := func(image string, auth *cri.AuthConfig) error {
		_, err := c.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}, Auth: auth})
		return err
	}
	settings := func(text string) {
		t.Helper()
		tmp := n.cfg.Registries + ".new"
		if err := errors.Join(os.WriteFile(tmp, []byte(text), 0o600), os.Rename(tmp, n.cfg.Registries)); err != nil {
			t.Fatal(err)
		}
	}
	mirror := `
mirrors:
  "*":
    endpoint: ["https://127.0.0.1:` + registryPort + `"]
    rewrite:
      "^library/(.*)": "cache/$1"
configs:
  "127.0.0.1:` + registryPort + `":
    tls: {ca_file: "` + filepath.Join(n.cfg.Dirs.Data, "ca.crt") + `"}
`
	if err := pull("example.invalid/library/box:1", nil); err == nil {
		t.Fatal("pulled from nowhere")
	}
	// Without credentials the mirror refuses; with a pod's own it does not.
	settings(mirror)
	secret := &cri.AuthConfig{Username: user, Password: password}
	eventually.True(t, "the mirror is used with a pod's secret",
		func() bool { return pull("example.invalid/library/box:1", secret) == nil })
	if err := pull("other.invalid/library/box:1", nil); err == nil {
		t.Error("pulled without credentials")
	}
	// A secret that cannot be read is an error, and does not hang.
	if err := pull("other.invalid/library/box:1", &cri.AuthConfig{Auth: "%%%"}); err == nil {
		t.Error("pulled with broken credentials")
	}
	settings(mirror + fmt.Sprintf("    auth: {username: %s, password: %s}\n", user, password))
	eventually.True(t, "the node's credentials are used",
		func() bool { return pull("other.invalid/library/box:1", nil) == nil })
	// A broken file leaves things as they are.
	settings("mirrors: [")
	eventually.True(t, "the error is logged", func() bool {
		log, _ := os.ReadFile(n.log.Name())
		return strings.Contains(string(log), "registries.yaml:1: this is not YAML")
	})
	if err := pull("third.invalid/library/box:1", nil); err != nil {
		t.Error(err)
	}
	if img := c.hasImage(ctx, "third.invalid/library/box:1"); img == nil || img.Pinned {
		t.Errorf("a pulled image must not be pinned: %v", img)
	}

	// A list in the folder of archives: what is missing is pulled and pinned while the list names it.
	list := func(text string) {
		t.Helper()
		tmp := filepath.Join(n.folder(), ".list")
		n.ok(os.MkdirAll(n.folder(), 0o755), os.WriteFile(tmp, []byte(text), 0o600),
			os.Rename(tmp, filepath.Join(n.folder(), "list.txt")))
	}
	list("# for the shed\nfourth.invalid/library/box:1\nthird.invalid/library/box:1\nfourth.invalid/none:1\n")
	eventually.True(t, "the image of a list is pulled", c.pinned(ctx, "fourth.invalid/library/box:1"))
	eventually.True(t, "an image that was there is pinned", c.pinned(ctx, "third.invalid/library/box:1"))
	eventually.True(t, "the image that cannot be pulled is named", n.logged("pull fourth.invalid/none:1"))
	if _, err := c.RemoveImage(ctx, &cri.RemoveImageRequest{
		Image: &cri.ImageSpec{Image: "fourth.invalid/library/box:1"}}); err != nil {
		t.Error(err)
	}
	eventually.True(t, "an image that was removed is pulled again", c.pinned(ctx, "fourth.invalid/library/box:1"))
	list("fourth.invalid/library/box:1\n")
	eventually.True(t, "an image that the list names no more is not pinned", func() bool {
		return !c.pinned(ctx, "third.invalid/library/box:1")() && c.pinned(ctx, "fourth.invalid/library/box:1")()
	})
	n.ok(os.Remove(filepath.Join(n.folder(), "list.txt")))
	eventually.True(t, "without the list nothing is pinned",
		func() bool { return !c.pinned(ctx, "fourth.invalid/library/box:1")() })
	n.stop(syscall.SIGTERM)
	log, _ := os.ReadFile(n.log.Name())
	if strings.Contains(string(log), password) {
		t.Error("the password is in the log")
	}
}
