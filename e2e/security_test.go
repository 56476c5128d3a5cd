package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/umiak-io/umiak/e2e/cluster"
)

func TestSecretsAreNowhereInClearText(t *testing.T) {
	e := share(t)
	// Made here and random: it can be nowhere else, and no compression can have shortened it.
	const word = "k4Xw9-"
	text := word + strings.Repeat(fmt.Sprintf("%x.", time.Now().UnixNano()), 4)
	secrets := e.Kube.CoreV1().Secrets(e.ns)
	sec := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "hidden"}, StringData: map[string]string{"word": text}}
	_, err := secrets.Create(e.ctx, sec, metav1.CreateOptions{})
	e.must(err)
	sec.StringData["word"] = text + "-changed"
	_, err = secrets.Update(e.ctx, sec, metav1.UpdateOptions{})
	e.must(err)
	got, err := secrets.Get(e.ctx, "hidden", getOptions)
	e.must(err)
	if string(got.Data["word"]) != text+"-changed" {
		t.Fatalf("reads back as %q", got.Data["word"])
	}
	// A text in the clear proves that the search would find one.
	control := "control-" + strings.ToUpper(text)
	_, err = e.Kube.CoreV1().Services(e.ns).Create(e.ctx,
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "seen", Annotations: map[string]string{"word": control}},
			Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone}}, metav1.CreateOptions{})
	e.must(err)
	needles := map[string][]byte{
		"the text":         []byte(text),
		"the text, base64": []byte(base64.StdEncoding.EncodeToString([]byte(text))[:32]),
		"the text, hex":    []byte(hex.EncodeToString([]byte(text))[:32]),
	}
	found := false
	e.eachFile(cluster.Dirs().Data, func(path string, raw []byte, _ fs.FileInfo) {
		for what, n := range needles {
			if bytes.Contains(raw, n) {
				t.Errorf("%s stands in %s", what, path)
			}
		}
		found = found || bytes.Contains(raw, []byte(control))
	})
	if !found {
		t.Error("the control text was not found either: the search proves nothing")
	}
}

// eachFile reads the files of the machine below a folder, save for what containers' own file systems hold.
func (e *env) eachFile(dir string, f func(path string, raw []byte, info fs.FileInfo)) {
	e.Helper()
	err := filepath.WalkDir(e.M.Host(dir), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // went away meanwhile
		}
		if d.IsDir() {
			if n := d.Name(); n == "io.containerd.snapshotter.v1.overlayfs" ||
				n == "io.containerd.content.v1.content" || n == "bundle" || n == "images" {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() {
			return nil //nolint:nilerr // went away meanwhile
		}
		raw, err := os.ReadFile(p)
		if err == nil {
			f(p, raw, info)
		}
		return nil
	})
	e.must(err)
}

var privateKey = regexp.MustCompile(`PRIVATE KEY-----|client-key-data:|aescbc:|aesgcm:|secretbox:`)

func TestKeysAreReadableByRootOnly(t *testing.T) {
	e := share(t)
	n := 0
	for _, dir := range []string{"/var/lib/umiak", "/etc/umiak"} {
		e.eachFile(dir, func(path string, raw []byte, info fs.FileInfo) {
			if privateKey.Match(raw) {
				n++
				if info.Mode().Perm()&0o077 != 0 {
					t.Errorf("%s has a key in it and mode %o", path, info.Mode().Perm())
				}
			}
		})
	}
	if n < 5 {
		t.Errorf("only %d files with keys were found", n)
	}
	// Sockets let their users do what keys would.
	e.must(e.M.Do(func() error {
		return filepath.WalkDir("/run/umiak", func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.Type()&fs.ModeSocket == 0 {
				return nil //nolint:nilerr // went away meanwhile
			}
			info, err := d.Info()
			if err == nil && info.Mode().Perm()&0o007 != 0 && !behindClosedDoor(p) {
				t.Errorf("socket %s has mode %o", p, info.Mode().Perm())
			}
			return nil
		})
	}))
}

// behindClosedDoor says whether a folder above the path keeps others out.
func behindClosedDoor(p string) bool {
	for p = filepath.Dir(p); p != "/"; p = filepath.Dir(p) {
		if info, err := os.Stat(p); err == nil && info.Mode().Perm()&0o001 == 0 {
			return true
		}
	}
	return false
}

// listener is a socket that takes connections.
type listener struct {
	addr netip.AddrPort
	node int // inode of the socket
}

// parseListeners reads /proc/net/tcp or tcp6.
func parseListeners(table string) []listener {
	var out []listener
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != "0A" {
			continue
		}
		host, port, _ := strings.Cut(f[1], ":")
		raw, err := hex.DecodeString(host)
		p, err2 := strconv.ParseUint(port, 16, 16)
		if err != nil || err2 != nil || len(raw)%4 != 0 {
			continue
		}
		for i := 0; i < len(raw); i += 4 { // words are in the machine's order, little endian
			slices.Reverse(raw[i : i+4])
		}
		a, ok := netip.AddrFromSlice(raw)
		if !ok {
			continue
		}
		n, _ := strconv.Atoi(f[9])
		out = append(out, listener{netip.AddrPortFrom(a.Unmap(), uint16(p)), n})
	}
	return out
}

func TestNothingAnswersStrangers(t *testing.T) {
	e := share(t)
	var ls []listener
	raw, err := e.M.Run(e.ctx, "sh", "-c", "cat /proc/net/tcp /proc/net/tcp6")
	e.must(err)
	for _, l := range parseListeners(raw) {
		if l.addr.Addr().IsUnspecified() {
			l.addr = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), l.addr.Port())
		}
		ls = append(ls, l)
	}
	ports := map[uint16]bool{}
	for _, l := range ls {
		ports[l.addr.Port()] = true
	}
	if !ports[6443] || !ports[10250] {
		t.Fatalf("the scan does not see the known ports: %v", ls)
	}
	// What may be known without a name: that the thing lives.
	health := []string{"/healthz", "/livez", "/readyz", "/health", "/ready", "/version"}
	for _, l := range ls {
		for _, scheme := range []string{"https", "http"} {
			for _, path := range []string{"/", "/metrics", "/pods", "/api/v1/secrets", "/api", "/apis", "/openapi/v2",
				"/configz", "/debug/pprof/", "/debug/pprof/heap", "/debug/flags/v", "/logs/", "/stats/summary",
				"/runningpods/", "/exec", "/run/default/x/y", "/v3/kv/range", "/statusz", "/flagz", "/spec",
				"/healthz/verbose"} {
				code, body, err := e.strangerGets(scheme, l.addr, path)
				if err != nil && path == "/" {
					break // does not speak this at all, or hangs up on strangers: no further path will tell more
				}
				if err != nil || slices.Contains(health, path) {
					continue
				}
				switch code {
				case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusBadRequest,
					http.StatusMethodNotAllowed:
				default:
					t.Errorf("%s://%s%s answers a stranger with %d: %.200s", scheme, l.addr, path, code, body)
				}
			}
		}
		if e.speaksHTTP2(l.addr) {
			t.Errorf("%s takes gRPC from a stranger", l.addr)
		}
	}
	// The same through the API with names that mean nothing.
	for what, change := range map[string]func(*rest.Config){
		"no certificate":   func(*rest.Config) {},
		"a wrong token":    func(c *rest.Config) { c.BearerToken = "not-a-token" },
		"a wrong password": func(c *rest.Config) { c.Username, c.Password = "admin", "admin" },
	} {
		cfg := rest.AnonymousClientConfig(e.REST)
		cfg.Dial = e.M.Dial
		change(cfg)
		k, err := kubernetes.NewForConfig(cfg)
		e.must(err)
		if _, err = k.CoreV1().Namespaces().List(e.soon(), metav1.ListOptions{}); err == nil {
			t.Errorf("with %s namespaces are listed", what)
		}
	}
}

func (e *env) strangerClient(verify bool) *http.Client {
	return &http.Client{Timeout: 3 * time.Second, CheckRedirect: func(*http.Request,
		[]*http.Request) error {
		return http.ErrUseLastResponse
	},
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: e.M.Dial,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: !verify}}} //nolint:gosec // a stranger does not know the CA
}

func (e *env) strangerGets(scheme string, a netip.AddrPort, path string) (int, string, error) {
	req, err := http.NewRequestWithContext(e.ctx, http.MethodGet, scheme+"://"+a.String()+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := e.strangerClient(false).Do(req)
	if err != nil {
		return 0, "", err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	return resp.StatusCode, string(body), errors.Join(err, resp.Body.Close())
}

// speaksHTTP2 says whether a port takes plain HTTP/2, which is what an open gRPC service would.
func (e *env) speaksHTTP2(a netip.AddrPort) bool {
	c, err := e.M.Dial(e.ctx, "tcp", a.String())
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	_, _ = io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	head := make([]byte, 9)
	_, err = io.ReadFull(c, head)
	return err == nil && head[3] == 4 // a SETTINGS frame
}

func TestTLSIsModern(t *testing.T) {
	e := share(t)
	for _, port := range []int{6443, 10250} {
		for version, ok := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false,
			tls.VersionTLS12: true, tls.VersionTLS13: true} {
			c, err := e.M.Dial(e.ctx, "tcp", net.JoinHostPort(e.M.IP, strconv.Itoa(port)))
			e.must(err)
			tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: version,
				MaxVersion: version}) //nolint:gosec // old versions are what is tested
			err = tc.HandshakeContext(e.soon())
			if (err == nil) != ok {
				t.Errorf("port %d, %s: %v", port, tls.VersionName(version), err)
			}
			_ = c.Close()
		}
	}
}
