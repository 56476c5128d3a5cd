package token

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

// Kind is the kind of machines that may join with a token.
type Kind string

// The kinds. Agents may join with a token for servers, too.
const (
	Agent  Kind = "agent"
	Server Kind = "server"
)

// ParseKind parses a kind as a user gives it.
func ParseKind(s string) (Kind, error) {
	if k := Kind(s); k == Agent || k == Server {
		return k, nil
	}
	return "", fmt.Errorf("kind %q is neither agent nor server", s)
}

// Token is a parsed token or password. No way of printing it shows the secret; only Line does.
type Token struct {
	// CA is the hash of the server CA's public key; empty for a password.
	CA string
	// ID identifies the token; empty for a password.
	ID     string
	Secret string
	// User is set for a password with a hash as k3s prints it, K10HASH::USER:PASSWORD. Its CA may be that of a k3s
	// cluster.
	User string
}

// MinPassword is the minimum length in characters of a password that a person chooses. A shorter one could be guessed
// with the ten attempts a minute that an address has.
const MinPassword = 12

// Weak reports whether the token is a password that is shorter than MinPassword.
func (t Token) Weak() bool { return t.ID == "" && len(t.Secret) < MinPassword }

const (
	prefix    = "um1"
	maxSecret = 256
)

var (
	hashForm = regexp.MustCompile(`^[0-9a-f]{64}$`)
	k3sForm  = regexp.MustCompile(`^K10([0-9a-fA-F]{64})::(.*)$`)
	madeForm = regexp.MustCompile(`^[a-z2-7]{32}$`)
	idForm   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)
)

// form describes the form of a token, for errors.
const form = "a token is one line, " + prefix + ".<64 hex digits>.<id>.<secret>, as `umiak token create` prints it"

// Parse parses a token, or a password if the text does not begin like a token. It ignores white space around it. No
// error shows any part of the secret.
func Parse(s string) (Token, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return Token{}, errors.New("it is empty; " + form)
	}
	if len(s) > len(prefix)+64+32+maxSecret+3 {
		return Token{}, fmt.Errorf("it is %d bytes long; %s", len(s), form)
	}
	if m := k3sForm.FindStringSubmatch(s); m != nil {
		return parseK3s(strings.ToLower(m[1]), m[2])
	}
	if strings.HasPrefix(s, "K10") && strings.Contains(s, "::") {
		return Token{}, errors.New("it begins as a token of k3s does, K10HASH::USER:PASSWORD, and its hash has not " +
			"64 hex digits; " + form)
	}
	rest, isToken := strings.CutPrefix(s, prefix+".")
	if !isToken {
		if err := checkSecret(s); err != nil {
			return Token{}, fmt.Errorf("%w; %s", err, form)
		}
		return Token{Secret: s}, nil
	}
	parts := strings.SplitN(rest, ".", 3)
	if len(parts) < 3 {
		return Token{}, fmt.Errorf("it has %d of its 4 parts, so it was cut off; %s", len(parts)+1, form)
	}
	t := Token{CA: strings.ToLower(parts[0]), ID: parts[1], Secret: parts[2]}
	switch {
	case !hashForm.MatchString(t.CA):
		return Token{}, fmt.Errorf("its second part is not a hash of 64 hex digits; %s", form)
	case !idForm.MatchString(t.ID):
		return Token{}, fmt.Errorf("its third part is not an id of small letters, digits and dashes; %s", form)
	}
	if err := checkSecret(t.Secret); err != nil {
		return Token{}, fmt.Errorf("%w; %s", err, form)
	}
	return t, nil
}

// parseK3s parses the rest, after the hash, of a token as k3s prints it.
func parseK3s(ca, rest string) (Token, error) {
	user, secret, ok := strings.Cut(rest, ":")
	switch {
	case !ok:
		return Token{}, errors.New("it is a token of `k3s token create`, which is known in that k3s cluster alone; " +
			form)
	case user != "server" && user != "node":
		return Token{}, errors.New("it is K10HASH::USER:PASSWORD as k3s prints it, and its user is neither server " +
			"nor node; " + form)
	}
	if err := checkSecret(secret); err != nil {
		return Token{}, fmt.Errorf("%w; %s", err, form)
	}
	return Token{CA: ca, User: user, Secret: secret}, nil
}

// CheckID returns an error if id is not a valid ID of a token.
func CheckID(id string) error {
	if !idForm.MatchString(id) {
		return fmt.Errorf("%q is not an id: 1 to 32 small letters, digits and dashes", id)
	}
	return nil
}

// checkSecret returns an error if s is not a valid secret. It may be a password that a user chose.
func checkSecret(s string) error {
	if s == "" || len(s) > maxSecret {
		return fmt.Errorf("its secret has %d characters, 1 to %d are possible", len(s), maxSecret)
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return fmt.Errorf("its secret has a space or a character that is not ASCII at place %d", i+1)
		}
	}
	return nil
}

// Line returns the token with its secret, as a user copies it.
func (t Token) Line() string {
	switch {
	case t.CA == "":
		return t.Secret
	case t.User != "":
		return "K10" + t.CA + "::" + t.User + ":" + t.Secret
	}
	return prefix + "." + t.CA + "." + t.ID + "." + t.Secret
}

// String identifies the token without its secret.
func (t Token) String() string {
	if t.ID == "" {
		return "password"
	}
	return "token " + t.ID
}

// GoString returns String, so that %#v does not show the secret.
func (t Token) GoString() string { return t.String() }

// LogValue implements slog.LogValuer with String.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// New returns a token with a random secret of 160 bits and, if id is empty, a random ID.
func New(ca, id string) Token {
	if id == "" {
		id = random(5)
	}
	return Token{CA: ca, ID: id, Secret: random(20)}
}

// Made reports whether a secret has the form of one that New makes, as opposed to a password that a person chose.
func Made(secret string) bool { return madeForm.MatchString(secret) }

func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, see crypto/rand
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))
}

// HashCA returns the hash of a CA in a token. It is that of the public key, so that a new CA certificate for the same
// key has the same hash.
func HashCA(ca *x509.Certificate) string {
	h := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(h[:])
}

// hasHash reports whether a hash is that of a CA: of HashCA, or, as in k3s, of the certificate's PEM file.
func hasHash(ca *x509.Certificate, hash string) bool {
	return HashCA(ca) == hash || HashSecret(string(EncodeCA(ca))) == hash
}

// HoldsCA reports whether one of the certificates, in PEM form, has the hash.
func HoldsCA(raw []byte, hash string) bool {
	return slices.ContainsFunc(parseCAs(raw), func(c *x509.Certificate) bool { return hasHash(c, hash) })
}

func parseCAs(raw []byte) (out []*x509.Certificate) {
	for b, rest := pem.Decode(raw); b != nil; b, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(b.Bytes); err == nil {
			out = append(out, c)
		}
	}
	return out
}

// EncodeCA returns a CA in PEM form.
func EncodeCA(ca *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})
}

// HashSecret returns the hash of a secret that servers store. It is a plain SHA-256, since a random secret cannot be
// guessed and a check must be cheap.
func HashSecret(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

// SecretFile returns the secret in a file. If the file is missing, it creates it with a random secret and mode 0600.
func SecretFile(file string) (string, error) {
	raw, err := os.ReadFile(file)
	if err == nil {
		s := strings.TrimSpace(string(raw))
		if err := checkSecret(s); err != nil {
			return "", fmt.Errorf("read %s: %w", file, err)
		}
		return s, os.Chmod(file, 0o600)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read secret: %w", err)
	}
	s := random(20)
	return s, atomicfile.Write(file, []byte(s+"\n"), 0o600)
}

// FromSettings returns a setting that is given as a value or as the name of a file with the value.
func FromSettings(value, file string) (string, error) {
	if value != "" || file == "" {
		return value, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // only read
	raw, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	return strings.TrimSpace(string(raw)), nil
}
