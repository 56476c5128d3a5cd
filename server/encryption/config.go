package encryption

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

// Ciphers are the ciphers that a key can be for, the default first.
//
// secretbox (XSalsa20 and Poly1305) is authenticated, which aescbc is not; its random nonces are long enough
// never to repeat, where aesgcm needs a new key every 200,000 writes; and it is fast on boards whose
// processors lack AES instructions.
var Ciphers = []string{"secretbox", "aescbc", "aesgcm"}

// Key is one key, without its secret.
type Key struct {
	Name   string `json:"name"`
	Cipher string `json:"cipher"`
}

func (k Key) String() string { return k.Cipher + " " + k.Name }

// number returns N of keyN, 0 for a name of another form.
func (k Key) number() int {
	n, err := strconv.Atoi(strings.TrimPrefix(k.Name, "key"))
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// secretKey is a key with its secret, in base64.
type secretKey struct {
	Key
	secret string
}

// String keeps the secret out of what is printed.
func (k secretKey) String() string { return k.Key.String() }

// config is an EncryptionConfiguration of the shape that umiak writes.
type config struct {
	resources []string
	keys      []secretKey // the first one writes
	identity  bool        // values that are not encrypted can be read
}

// fileForm is the form of the file. Strict decoding refuses all else, KMS plugins above all: their keys are not here.
type fileForm struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Resources  []resourceForm `json:"resources"`
}

type resourceForm struct {
	Resources []string                  `json:"resources"`
	Providers []map[string]providerForm `json:"providers"`
}

type providerForm struct {
	Keys []keyForm `json:"keys,omitempty"`
}

type keyForm struct {
	Name   string `json:"name"`
	Secret string `json:"secret"`
}

// ErrForeign does not quote the file: there are keys in it.
var ErrForeign = errors.New("it is not of the form that umiak writes (one list of resources, keys of secretbox, aescbc or aesgcm); rotate its keys by hand")

// maxConfig bounds the file.
const maxConfig = 256 << 10

func parse(raw []byte) (*config, error) {
	var f fileForm
	if len(raw) > maxConfig || yaml.UnmarshalStrict(raw, &f) != nil || f.Kind != "EncryptionConfiguration" ||
		len(f.Resources) != 1 {
		return nil, ErrForeign
	}
	r := f.Resources[0]
	c := &config{resources: r.Resources}
	for i, p := range r.Providers {
		if len(p) != 1 {
			return nil, ErrForeign
		}
		for cipher, keys := range p {
			if cipher == "identity" {
				// Before the last place it would write in the clear.
				if i != len(r.Providers)-1 || len(keys.Keys) > 0 {
					return nil, ErrForeign
				}
				c.identity = true
				continue
			}
			if !slices.Contains(Ciphers, cipher) || len(keys.Keys) == 0 {
				return nil, ErrForeign
			}
			for _, k := range keys.Keys {
				if k.Name == "" || k.Secret == "" {
					return nil, ErrForeign
				}
				c.keys = append(c.keys, secretKey{Key{k.Name, cipher}, k.Secret})
			}
		}
	}
	if len(c.keys) == 0 || len(c.resources) == 0 {
		return nil, ErrForeign
	}
	return c, nil
}

func (c *config) encode() ([]byte, error) {
	r := resourceForm{Resources: c.resources}
	last := ""
	for _, k := range c.keys {
		form := keyForm{k.Name, k.secret}
		// Neighbours of one cipher share a provider: two of one would have the same prefix in the store.
		if k.Cipher == last {
			p := r.Providers[len(r.Providers)-1][last]
			p.Keys = append(p.Keys, form)
			r.Providers[len(r.Providers)-1][last] = p
			continue
		}
		last = k.Cipher
		r.Providers = append(r.Providers, map[string]providerForm{last: {Keys: []keyForm{form}}})
	}
	if c.identity {
		r.Providers = append(r.Providers, map[string]providerForm{"identity": {}})
	}
	raw, err := yaml.Marshal(fileForm{APIVersion: "apiserver.config.k8s.io/v1", Kind: "EncryptionConfiguration",
		Resources: []resourceForm{r}})
	if err != nil {
		return nil, errors.New("encode encryption config") // its words might quote a key
	}
	return raw, nil
}

// Ensure writes a configuration with a new key of the cipher, "" for the best one, for Secrets and ConfigMaps, unless
// the file is there.
func Ensure(file, cipher string) error {
	_, err := os.Stat(file)
	if err == nil {
		return os.Chmod(file, 0o600)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read encryption config: %w", err)
	}
	k, err := newKey("key1", cmp.Or(cipher, Ciphers[0]))
	if err != nil {
		return err
	}
	return (&config{resources: []string{"secrets", "configmaps"}, keys: []secretKey{k}, identity: true}).write(file)
}

// Differs returns the key that is written with, and reports whether it is of another cipher than this. It is not where
// the cipher is "" or the file cannot be read.
func Differs(file, cipher string) (Key, bool) {
	c, _, err := load(file)
	if err != nil || cipher == "" {
		return Key{}, false
	}
	return c.keys[0].Key, c.keys[0].Cipher != cipher
}

func newKey(name, cipher string) (secretKey, error) {
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		return secretKey{}, fmt.Errorf("make encryption key: %w", err)
	}
	return secretKey{Key{name, cipher}, base64.StdEncoding.EncodeToString(b)}, nil
}

func (c *config) write(file string) error {
	raw, err := c.encode()
	if err != nil {
		return err
	}
	return atomicfile.Write(file, raw, 0o600)
}

// load reads the file. hash is the one by which the API server reports which file it has loaded.
func load(file string) (c *config, hash string, err error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, "", fmt.Errorf("read encryption config (run this as root, on a server that has been started once): %w", err)
	}
	if c, err = parse(raw); err != nil {
		return nil, "", fmt.Errorf("encryption config %s: %w", file, err)
	}
	sum := sha256.Sum256(raw)
	return c, "sha256:" + hex.EncodeToString(sum[:]), nil
}

// Phases of a rotation.
const (
	PhaseNone      = "none"
	PhaseAnnounced = "the new key can be read, and is not written with yet"
	PhaseRewriting = "the new key is written with, and what is stored is being rewritten"
)

// newest returns the index of the key that stays.
func (c *config) newest() int {
	n := 0
	for i, k := range c.keys {
		if k.number() > c.keys[n].number() {
			n = i
		}
	}
	return n
}

func (c *config) phase() string {
	switch {
	case len(c.keys) == 1:
		return PhaseNone
	case c.newest() == 0:
		return PhaseRewriting
	}
	return PhaseAnnounced
}

// announce adds a new key that can be read.
func (c *config) announce(cipher string) error {
	k, err := newKey("key"+strconv.Itoa(c.keys[c.newest()].number()+1), cipher)
	if err != nil {
		return err
	}
	c.keys = append(c.keys, k)
	return nil
}

// promote makes the newest key the one that writes.
func (c *config) promote() {
	n := c.newest()
	k := c.keys[n]
	c.keys = slices.Insert(slices.Delete(c.keys, n, n+1), 0, k)
}

// retire removes all keys but the one that writes.
func (c *config) retire() { c.keys = c.keys[:1] }
