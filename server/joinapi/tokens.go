package joinapi

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/server/cluster/seal"
)

// The Secrets that this package owns.
const (
	Namespace = metav1.NamespaceSystem
	// Label is on all of them; its value is the kind of the Secret.
	Label      = "umiak.io/join"
	labelToken = "token"
	labelNode  = "node"

	tokenPrefix = "umiak-token-"
	tokenType   = corev1.SecretType("umiak.io/token")

	keyKind, keyHash, keyExpires, keyUses, keyText, keyPassword = "kind", "sha256", "expires", "uses-left", "description", "password"
	keyFormer, keySealed, keySetOn                              = "former", "sealed", "set-on"
	keyRenews, keyPrevious, keyPreviousEnds                     = "renews", "previous", "previous-ends"
)

// The two tokens that a cluster has from its first start on, until they are rotated or revoked.
const (
	ServerID = "server"
	AgentID  = "agent"
)

// errUnknown means that there is no token with an id.
var errUnknown = errors.New("there is no such token")

// Record is the cluster's record of a token.
type Record struct {
	ID          string     `json:"id"`
	Kind        token.Kind `json:"kind"`
	Description string     `json:"description,omitempty"`
	Created     time.Time  `json:"created"`
	// Expires is zero for a token that does not expire.
	Expires time.Time `json:"expires,omitzero"`
	// UsesLeft is the number of machines that may still join with it; nil means any number.
	UsesLeft *int `json:"usesLeft,omitempty"`
	// Password means that a user has chosen the secret, and that machines may send it without hash and id.
	Password bool `json:"password,omitempty"`
	// SetOn are the servers in whose settings the token stands, or stood when they last started.
	SetOn []string `json:"setOn,omitempty"`
	// Renews means that servers replace its secret before it expires.
	Renews bool `json:"renews,omitempty"`

	hash   string   // empty once it is revoked
	former []string // hashes of secrets that were rotated away or revoked, the newest last
	// previous is the hash of the secret before, which Renew replaced and which is taken until previousEnds.
	previous     string
	previousEnds time.Time
	sealed       []byte // the token's line, for servers alone; nothing where it was made elsewhere
	raw          *corev1.Secret
}

// maxFormer bounds the former secrets in the record of a token.
const maxFormer = 1000

// replace gives the token another secret, by its hash.
func (r *Record) replace(hash string) {
	if r.hash != "" && r.hash != hash {
		r.former = append(slices.DeleteFunc(r.former, func(h string) bool { return h == r.hash }), r.hash)
		r.former = r.former[max(0, len(r.former)-maxFormer):]
	}
	r.hash, r.sealed, r.previous, r.previousEnds = hash, nil, "", time.Time{}
}

// State returns in one word whether the token can be used.
func (r Record) State(now time.Time) string {
	switch {
	case r.hash == "":
		return "revoked"
	case !r.Expires.IsZero() && !now.Before(r.Expires):
		return "expired"
	case r.UsesLeft != nil && *r.UsesLeft <= 0:
		return "used up"
	}
	return "valid"
}

// parse reads a Secret. It is the cluster's, yet a person may have edited it: what cannot be read is refused.
func parse(s *corev1.Secret) (Record, error) {
	id, ok := strings.CutPrefix(s.Name, tokenPrefix)
	if !ok || s.Type != tokenType {
		return Record{}, fmt.Errorf("secret %s is not a token", s.Name)
	}
	r := Record{ID: id, Description: string(s.Data[keyText]), Created: s.CreationTimestamp.Time,
		Password: string(s.Data[keyPassword]) == "true", hash: string(s.Data[keyHash]),
		former: strings.Fields(string(s.Data[keyFormer])), SetOn: strings.Fields(string(s.Data[keySetOn])),
		sealed: s.Data[keySealed],
		Renews: string(s.Data[keyRenews]) == "true", previous: string(s.Data[keyPrevious]), raw: s}
	var err error
	if r.Kind, err = token.ParseKind(string(s.Data[keyKind])); err != nil {
		return Record{}, fmt.Errorf("secret %s: %w", s.Name, err)
	}
	if v := string(s.Data[keyExpires]); v != "" {
		if r.Expires, err = time.Parse(time.RFC3339, v); err != nil {
			return Record{}, fmt.Errorf("secret %s: %w", s.Name, err)
		}
	}
	if v := string(s.Data[keyPreviousEnds]); v != "" {
		if r.previousEnds, err = time.Parse(time.RFC3339, v); err != nil {
			return Record{}, fmt.Errorf("secret %s: %w", s.Name, err)
		}
	}
	if v := string(s.Data[keyUses]); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			return Record{}, fmt.Errorf("secret %s: %w", s.Name, err)
		}
		r.UsesLeft = &n
	}
	return r, nil
}

func (r Record) secret() *corev1.Secret {
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: tokenPrefix + r.ID, Namespace: Namespace,
			Labels: map[string]string{Label: labelToken}},
		Type: tokenType,
		Data: map[string][]byte{keyKind: []byte(r.Kind), keyHash: []byte(r.hash)},
	}
	if r.raw != nil {
		s.ResourceVersion, s.UID = r.raw.ResourceVersion, r.raw.UID
	}
	if r.Description != "" {
		s.Data[keyText] = []byte(r.Description)
	}
	if !r.Expires.IsZero() {
		s.Data[keyExpires] = []byte(r.Expires.UTC().Format(time.RFC3339))
	}
	if r.UsesLeft != nil {
		s.Data[keyUses] = []byte(strconv.Itoa(*r.UsesLeft))
	}
	if r.Password {
		s.Data[keyPassword] = []byte("true")
	}
	if len(r.former) > 0 {
		s.Data[keyFormer] = []byte(strings.Join(r.former, "\n"))
	}
	if r.Renews {
		s.Data[keyRenews] = []byte("true")
	}
	if r.previous != "" {
		s.Data[keyPrevious], s.Data[keyPreviousEnds] = []byte(r.previous), []byte(r.previousEnds.UTC().Format(time.RFC3339))
	}
	if len(r.SetOn) > 0 {
		s.Data[keySetOn] = []byte(strings.Join(r.SetOn, "\n"))
	}
	if len(r.sealed) > 0 {
		s.Data[keySealed] = r.sealed
	}
	return s
}

// Tokens reads and writes the cluster's tokens, with a client that may read and write its Secrets.
type Tokens struct {
	Client kubernetes.Interface
	// CA is the hash of the server CA's public key, which stands in every token.
	CA string
	// Former are those of server CAs that are trusted besides, while the CA is being replaced: tokens with them are
	// still good.
	Former []string
	// Secret returns a secret that only servers have; nil elsewhere. It seals the tokens of the first start, which all
	// servers store in files.
	Secret func() ([]byte, error)
	Now    func() time.Time // time.Now
}

func (t Tokens) now() time.Time {
	if t.Now == nil {
		return time.Now()
	}
	return t.Now()
}

// purpose is that of what is sealed with Secret.
const purpose = "umiak tokens"

// seal puts a token's line, sealed, into its record for the other servers.
func (t Tokens) seal(r *Record, tok token.Token) error {
	if t.Secret == nil {
		return nil
	}
	secret, err := t.Secret()
	if err != nil {
		return err
	}
	key, err := seal.Key(secret, purpose)
	if err != nil {
		return err
	}
	if r.sealed, err = seal.Seal(key, []byte(tok.Line()), []byte(r.ID)); err != nil {
		return fmt.Errorf("seal token %s: %w", r.ID, err)
	}
	return nil
}

// open is the token that seal has kept, if it is the one that counts.
func (t Tokens) open(r Record) (token.Token, error) {
	if t.Secret == nil || len(r.sealed) == 0 {
		return token.Token{}, seal.ErrOther
	}
	secret, err := t.Secret()
	if err != nil {
		return token.Token{}, err
	}
	key, err := seal.Key(secret, purpose)
	if err != nil {
		return token.Token{}, err
	}
	line, err := seal.Open(key, r.sealed, []byte(r.ID))
	if err != nil {
		return token.Token{}, err
	}
	tok, err := token.Parse(string(line))
	if err == nil && token.HashSecret(tok.Secret) != r.hash {
		err = seal.ErrOther
	}
	return tok, err
}

// Spec describes a new token.
type Spec struct {
	Kind        token.Kind
	Description string
	TTL         time.Duration // 0: it does not end by itself
	SingleUse   bool
}

func (t Tokens) secrets() corev1client.SecretInterface { return t.Client.CoreV1().Secrets(Namespace) }

// Create makes a token. Nobody can read it again later.
func (t Tokens) Create(ctx context.Context, spec Spec) (token.Token, Record, error) {
	tok := token.New(t.CA, "")
	r := Record{ID: tok.ID, Kind: spec.Kind, Description: spec.Description, hash: token.HashSecret(tok.Secret)}
	if spec.TTL > 0 {
		r.Expires = time.Now().Add(spec.TTL).Truncate(time.Second)
	}
	if spec.SingleUse {
		r.UsesLeft = new(int)
		*r.UsesLeft = 1
	}
	if err := t.prune(ctx); err != nil {
		return token.Token{}, Record{}, err
	}
	s, err := t.secrets().Create(ctx, r.secret(), metav1.CreateOptions{})
	if err != nil {
		return token.Token{}, Record{}, fmt.Errorf("create token: %w", err)
	}
	r.Created = s.CreationTimestamp.Time
	return tok, r, nil
}

// prune removes tokens that expired long ago. Until then a machine that uses one is refused with that reason.
func (t Tokens) prune(ctx context.Context) error {
	list, err := t.List(ctx)
	if err != nil {
		return err
	}
	for _, r := range list {
		// those two remember what they were
		if r.Expires.IsZero() || time.Since(r.Expires) < kept || r.ID == ServerID || r.ID == AgentID {
			continue
		}
		if err := t.secrets().Delete(ctx, tokenPrefix+r.ID, metav1.DeleteOptions{}); err != nil &&
			!apierrors.IsNotFound(err) {
			return fmt.Errorf("remove the ended token %s: %w", r.ID, err)
		}
	}
	return nil
}

const kept = 7 * 24 * time.Hour

// List returns all tokens, oldest first.
func (t Tokens) List(ctx context.Context) ([]Record, error) {
	list, err := t.secrets().List(ctx, metav1.ListOptions{LabelSelector: Label + "=" + labelToken})
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	var out []Record
	for i := range list.Items {
		r, err := parse(&list.Items[i])
		if err != nil {
			return nil, fmt.Errorf("list tokens: %w", err)
		}
		out = append(out, r)
	}
	slices.SortStableFunc(out, func(a, b Record) int { return a.Created.Compare(b.Created) })
	return out, nil
}

// get reads one token from the cluster.
func (t Tokens) get(ctx context.Context, id string) (Record, error) {
	if err := token.CheckID(id); err != nil {
		return Record{}, err
	}
	s, err := t.secrets().Get(ctx, tokenPrefix+id, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return Record{}, fmt.Errorf("%w: %s", errUnknown, id)
	}
	if err != nil {
		return Record{}, fmt.Errorf("read token %s: %w", id, err)
	}
	return parse(s)
}

// Revoke ends a token at once. Nodes that joined with it stay. The two tokens of the first start leave a
// trace, so that no server makes them again.
func (t Tokens) Revoke(ctx context.Context, id string) error {
	r, err := t.get(ctx, id)
	if err != nil {
		return err
	}
	if id == ServerID || id == AgentID {
		r.replace("")
		r.lasting()
		r.Password = false
		_, err = t.secrets().Update(ctx, r.secret(), metav1.UpdateOptions{})
	} else {
		err = t.secrets().Delete(ctx, tokenPrefix+id, metav1.DeleteOptions{})
	}
	if err != nil {
		return fmt.Errorf("revoke token %s: %w", id, err)
	}
	return nil
}

// Rotate gives a token a new secret; the old one is refused from now on. The record names the servers that still have
// the old one in their settings.
func (t Tokens) Rotate(ctx context.Context, id string) (token.Token, Record, error) {
	r, err := t.get(ctx, id)
	if err != nil {
		return token.Token{}, Record{}, err
	}
	tok := token.New(t.CA, id)
	r.replace(token.HashSecret(tok.Secret))
	if r.Password = false; id == AgentID {
		r.renewing(t.now())
	}
	if err := t.seal(&r, tok); err != nil {
		return token.Token{}, Record{}, err
	}
	if _, err := t.secrets().Update(ctx, r.secret(), metav1.UpdateOptions{}); err != nil {
		return token.Token{}, Record{}, fmt.Errorf("rotate token %s: %w", id, err)
	}
	return tok, r, nil
}

// errUsedUp is returned by use.
var errUsedUp = errors.New("used up")

// use takes one of a token's uses. Of two who want the last one at once, one gets errUsedUp.
func (t Tokens) use(ctx context.Context, id string) error {
	for {
		r, err := t.get(ctx, id)
		if err != nil {
			return err
		}
		if r.UsesLeft == nil {
			return nil
		}
		if r.State(time.Now()) != "valid" {
			return errUsedUp
		}
		*r.UsesLeft--
		_, err = t.secrets().Update(ctx, r.secret(), metav1.UpdateOptions{})
		if !apierrors.IsConflict(err) {
			return err
		}
	}
}

// CAHash is the hash by which tokens know a cluster, of its server CA in PEM form. While the CA is being
// replaced there are several, the current one first.
func CAHash(pemCA []byte) (current string, former []string, err error) {
	var hashes []string
	for b, rest := pem.Decode(pemCA); b != nil; b, rest = pem.Decode(rest) {
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return "", nil, fmt.Errorf("read the server CA: %w", err)
		}
		hashes = append(hashes, token.HashCA(c))
	}
	if len(hashes) == 0 {
		return "", nil, errors.New("read the server CA: no certificate in PEM form")
	}
	return hashes[0], hashes[1:], nil
}
