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
	// releases is where install.sh looks if it was told nothing else.
	releases = "https://github.com/umiak-io/umiak/releases/download"
)

// opener opens a file of a release.
type opener func(ctx context.Context, name string) (io.ReadCloser, error)

// release takes install.sh, the sums and their signature, and the programs, all of them checked.
func (b *builder) release(ctx context.Context) error {
	where := b.cfg.Release
	if where == "" {
		var err error
		where, err = noted(b.cfg.Etc)
		if err != nil && !b.cfg.Programs {
			b.say("without a release: `umiak upgrade --from` on a node puts in place what is in it")
			return nil
		}
		if err != nil {
			return err
		}
	}
	open, done, err := openRelease(where)
	if err != nil {
		return fmt.Errorf("release %s: %w", where, err)
	}
	defer done()
	b.say("taking the release %s", where)
	if err := b.take(ctx, open); err != nil {
		return fmt.Errorf("release %s: %w; --release says where another one is", where, err)
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
			// gzip is on every machine.
			if sums[name+".gz"] == "" {
				return fmt.Errorf("it has no %s for %s", p, a)
			}
			b.planned.Programs = append(b.planned.Programs, name)
			if b.cfg.DryRun {
				continue
			}
			b.say("  %s", name)
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
		err = fmt.Errorf("%s is damaged: its SHA-256 is not the one of %s", name, list)
	}
	return err
}

// fetch copies a file of the release into the bundle and returns its sum.
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
		err = fmt.Errorf("is larger than %d MiB", limit>>20)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return "", fmt.Errorf("take %s: %w", name, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// trusted checks the signature of the list of sums, with the key that install.sh on this node would take.
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
		return fmt.Errorf("the signature of %s is wrong: these files are not what the release's makers signed", list)
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
	b.say("  this machine knows no key of releases: only that the release fits to its own install.sh is checked; --key FILE says more")
	return readFile(filepath.Join(b.stage, installer), maxList)
}

var pemBlock = regexp.MustCompile(`(?s)-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]+-----END PUBLIC KEY-----`)

// parseKey finds an RSA key in a PEM file, or in an install.sh that has one.
func parseKey(text []byte) (*rsa.PublicKey, error) {
	block, _ := pem.Decode(pemBlock.Find(text))
	if block == nil {
		return nil, errors.New("there is no public key to check it with")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the key of releases: %w", err)
	}
	if k, ok := key.(*rsa.PublicKey); ok {
		return k, nil
	}
	return nil, errors.New("the key of releases is no RSA key")
}

var (
	notedVersion = regexp.MustCompile(`(?m)^UMIAK_RELEASE_VERSION='([^']+)'$`)
	notedBase    = regexp.MustCompile(`(?m)^INSTALL_UMIAK_BASE_URL='([^']+)'$`)
)

// noted is the release that this node was installed from, by what install.sh left.
func noted(etc string) (string, error) {
	script, err := readFile(filepath.Join(etc, installer), maxList)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	version := notedVersion.FindSubmatch(script)
	if version == nil {
		return "", errors.New("this node was not installed from a release: say with --release where one is")
	}
	env, err := readFile(filepath.Join(etc, "umiak.env"), maxList)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	base := releases
	if m := notedBase.FindSubmatch(env); m != nil {
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

// openRelease returns what opens the files of a release, given its folder, archive or URL, and what is to be called last.
func openRelease(where string) (opener, func(), error) {
	if u, err := url.Parse(where); err == nil && (u.Scheme == "http" || u.Scheme == "https") {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.Proxy = httpproxy.Proxy()
		c := &http.Client{Timeout: time.Hour, Transport: transport}
		return func(ctx context.Context, name string) (io.ReadCloser, error) { return get(ctx, c, u.JoinPath(name)) }, c.CloseIdleConnections, nil
	}
	dir, done, err := Folder(strings.TrimPrefix(where, "file://"))
	if err != nil {
		return nil, nil, err
	}
	return func(_ context.Context, name string) (io.ReadCloser, error) { return os.Open(filepath.Join(dir, name)) }, done, nil
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
		return nil, errors.Join(fmt.Errorf("%s: the server says %s", u, resp.Status), resp.Body.Close())
	}
	return resp.Body, nil
}
