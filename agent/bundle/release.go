package bundle

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/umiak-io/umiak/internal/httpproxy"
)

const (
	installer  = "install.sh"
	list       = "SHA256SUMS"
	signature  = "SHA256SUMS.sig"
	maxProgram = 1 << 30
	// defaultReleases is where install.sh looks by default.
	defaultReleases = "https://github.com/umiak-io/umiak/releases/download"
)

// opener opens a file of a release.
type opener func(ctx context.Context, name string) (io.ReadCloser, error)

// release adds install.sh, the checksums with their signature, and the programs, and verifies them.
func (b *builder) release(ctx context.Context) error {
	where := b.cfg.Release
	if where == "" {
		var err error
		where, err = installedFrom(b.cfg.Etc)
		if err != nil && !b.cfg.Programs {
			b.printf("the bundle has no release; use it with `umiak upgrade --from` on a node")
			return nil
		}
		if err != nil {
			return err
		}
	}
	open, done, err := openRelease(ctx, where)
	if err != nil {
		return fmt.Errorf("release %s: %w", where, err)
	}
	defer done()
	b.printf("adding the release %s", where)
	if err := b.take(ctx, open); err != nil {
		return fmt.Errorf("release %s: %w; use --release for another one", where, err)
	}
	return nil
}

func (b *builder) take(ctx context.Context, open opener) error {
	for _, name := range []string{list, signature, installer} {
		if _, err := b.fetch(ctx, open, name, maxList); err != nil {
			return err
		}
	}
	raw, err := os.ReadFile(filepath.Join(b.stage, list))
	if err != nil {
		return err
	}
	if err := b.trusted(raw); err != nil {
		return err
	}
	sums, err := parseSums(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", list, err)
	}
	if sum, err := sumOfFile(filepath.Join(b.stage, installer)); err != nil || sum != sums[installer] {
		return errors.Join(errors.New(installer+" is damaged"), err)
	}
	if _, ok := sums["LICENSES.txt"]; ok {
		if err := b.fetchListed(ctx, open, "LICENSES.txt", sums, maxList); err != nil {
			return err
		}
	}
	if !b.cfg.Programs {
		return nil
	}
	for _, a := range b.cfg.Arches {
		for _, p := range []string{"umiak", "umiak-agent"} {
			name := p + "-linux-" + a
			// every machine has gzip
			if sums[name+".gz"] == "" {
				return fmt.Errorf("it contains no %s for %s", p, a)
			}
			b.planned.Programs = append(b.planned.Programs, name)
			if b.cfg.DryRun {
				continue
			}
			b.printf("  %s", name)
			if err := b.fetchListed(ctx, open, name+".gz", sums, maxProgram); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *builder) fetchListed(ctx context.Context, open opener, name string, all sums, limit int64) error {
	sum, err := b.fetch(ctx, open, name, limit)
	if err == nil && sum != all[name] {
		err = fmt.Errorf("%s is damaged: its SHA-256 differs from the one in %s", name, list)
	}
	return err
}

// fetch copies a file of the release into the bundle and returns its checksum.
func (b *builder) fetch(ctx context.Context, open opener, name string, limit int64) (sum string, err error) {
	in, err := open(ctx, name)
	if err != nil {
		return "", err
	}
	defer in.Close() //nolint:errcheck // opened for reading
	out, err := os.OpenFile(filepath.Join(b.stage, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(out, h), io.LimitReader(in, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("larger than %d MiB", limit>>20)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return "", fmt.Errorf("fetch %s: %w", name, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// trusted verifies the signature of the list of checksums with the key that install.sh would use on this node.
func (b *builder) trusted(raw []byte) error {
	text, err := b.key()
	if err != nil {
		return err
	}
	key, err := parseKey(text)
	if err != nil {
		return err
	}
	sig, err := os.ReadFile(filepath.Join(b.stage, signature))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(raw)
	if rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], sig) != nil {
		return fmt.Errorf("the signature of %s is invalid: the files are not those that were signed", list)
	}
	return nil
}

func (b *builder) key() ([]byte, error) {
	if b.cfg.Key != "" {
		return readFile(b.cfg.Key, maxList)
	}
	for _, name := range []string{installer, "release.pem"} {
		raw, err := readFile(filepath.Join(b.cfg.Etc, name), maxList)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if pemBlock.Match(raw) {
			return raw, nil
		}
	}
	b.printf("  this machine has no release key: the release is verified only with the key in its own install.sh; use --key FILE")
	return readFile(filepath.Join(b.stage, installer), maxList)
}

var pemBlock = regexp.MustCompile(`(?s)-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]+-----END PUBLIC KEY-----`)

// parseKey returns the RSA public key in a PEM file, or in an install.sh that contains one.
func parseKey(text []byte) (*rsa.PublicKey, error) {
	block, _ := pem.Decode(pemBlock.Find(text))
	if block == nil {
		return nil, errors.New("no public key to verify it with")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse the release key: %w", err)
	}
	if k, ok := key.(*rsa.PublicKey); ok {
		return k, nil
	}
	return nil, errors.New("the release key is not an RSA key")
}

var (
	recordedVersion = regexp.MustCompile(`(?m)^UMIAK_RELEASE_VERSION='([^']+)'$`)
	recordedBase    = regexp.MustCompile(`(?m)^INSTALL_UMIAK_BASE_URL='([^']+)'$`)
)

// installedFrom returns the place of the release that this node was installed from, as recorded by install.sh.
func installedFrom(etc string) (string, error) {
	script, err := readFile(filepath.Join(etc, installer), maxList)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	version := recordedVersion.FindSubmatch(script)
	if version == nil {
		return "", errors.New("this node was not installed from a release: set --release")
	}
	env, err := readFile(filepath.Join(etc, "umiak.env"), maxList)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	base := defaultReleases
	if m := recordedBase.FindSubmatch(env); m != nil {
		base = strings.TrimSuffix(strings.TrimPrefix(string(m[1]), "file://"), "/")
	}
	if filepath.IsAbs(base) {
		if _, err := os.Stat(filepath.Join(base, list)); err == nil {
			return base, nil
		}
		return filepath.Join(base, string(version[1])), nil
	}
	return base + "/" + url.PathEscape(string(version[1])), nil
}

// openRelease returns a function that opens the files of a release, given its folder, archive or URL, and a function to
// call at the end.
func openRelease(ctx context.Context, where string) (opener, func(), error) {
	if u, err := url.Parse(where); err == nil && (u.Scheme == "http" || u.Scheme == "https") {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.Proxy = httpproxy.Proxy()
		c := &http.Client{Timeout: time.Hour, Transport: transport}
		return func(ctx context.Context, name string) (io.ReadCloser, error) { return get(ctx, c, u.JoinPath(name)) },
			c.CloseIdleConnections, nil
	}
	dir, done, err := Folder(ctx, strings.TrimPrefix(where, "file://"))
	if err != nil {
		return nil, nil, err
	}
	return func(_ context.Context, name string) (io.ReadCloser, error) { return os.Open(filepath.Join(dir, name)) },
		done, nil
}

func get(ctx context.Context, c *http.Client, u *url.URL) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("%s: the server answers %s", u, resp.Status), resp.Body.Close())
	}
	return resp.Body, nil
}
