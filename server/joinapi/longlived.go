package joinapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/token"
)

// LongLived is a token that the cluster has from its first start on.
type LongLived struct {
	ID   string
	Kind token.Kind
	File string // where it lies on the server, 0600
	// Given is the setting, a password or a token of this cluster; empty for a random one.
	Given string
	// Joined means that this server is not the cluster's first: Given is the token with which it joined.
	Joined bool
	// Server is this server's name, under which the record lists that the token is in its settings; empty for no list.
	Server string
}

// maxSetOn bounds Record.SetOn.
const maxSetOn = 64

// recordSetting stores in the record whether the token is in this server's settings.
func (t Tokens) recordSetting(ctx context.Context, l LongLived, r Record) (Record, error) {
	set := l.Given != ""
	if l.Server == "" || slices.Contains(r.SetOn, l.Server) == set || set && len(r.SetOn) >= maxSetOn {
		return r, nil
	}
	if r.SetOn = slices.DeleteFunc(slices.Clone(r.SetOn), func(s string) bool { return s == l.Server }); set {
		r.SetOn = append(r.SetOn, l.Server)
	}
	s, err := t.secrets().Update(ctx, r.secret(), metav1.UpdateOptions{})
	if err != nil {
		return r, fmt.Errorf("record where token %s is set: %w", l.ID, err)
	}
	return parse(s)
}

// errOtherCA means that what the user has set is a token of another CA than those that are trusted.
var errOtherCA = errors.New("it is a token of another cluster than the one whose CA lies in data-dir, or of this one before its CA was replaced; `umiak token list` and DATA/server/token have those of now")

// errWeak means that a password is too short.
var errWeak = fmt.Errorf("it is a password of less than %d characters, which can be guessed; set a longer one, or none and a token is made", token.MinPassword)

// Check returns the reason why the setting cannot be used. setting is its key, for the error; cas are the hashes of the
// trusted server CAs.
func (l LongLived) Check(setting string, cas ...string) (token.Token, error) {
	t, err := token.Parse(l.Given)
	if err != nil {
		return t, fmt.Errorf("%s: %w", setting, err)
	}
	if t.ID != "" && t.ID != l.ID {
		return t, fmt.Errorf("%s: it is the token %q; only a password or the token %q can be set", setting, t.ID, l.ID)
	}
	if t.User != "" { // as k3s printed it; the hash is of a CA that this cluster need not have
		t.CA, t.User = "", ""
	}
	if t.CA != "" && !slices.Contains(cas, t.CA) {
		return t, fmt.Errorf("%s: %w", setting, errOtherCA)
	}
	return t, nil
}

// Ensure makes the token, random or from the setting, and updates the file: it follows a rotation by another server,
// and is removed when the token was revoked. A setting that was rotated away is not used again; note has the remedy.
func (t Tokens) Ensure(ctx context.Context, l LongLived, log *slog.Logger) (note string, err error) {
	r, err := t.get(ctx, l.ID)
	switch {
	case errors.Is(err, errUnknown):
		return "", t.first(ctx, l)
	case err != nil:
		return "", err
	}
	if r, err = t.recordSetting(ctx, l, r); err != nil {
		return "", err
	}
	if l.Given != "" {
		given, err := l.Check("token", t.cas()...)
		h := token.HashSecret(given.Secret)
		switch {
		case errors.Is(err, errOtherCA) && h != r.hash:
			note = fmt.Sprintf("it is of the cluster's CA of before, or of another cluster, and is not used; set the one in %s, or none", l.File)
		case err != nil && !errors.Is(err, errOtherCA) && !l.Joined:
			return "", err
		case h != r.hash && slices.Contains(r.former, h):
			note = fmt.Sprintf("it was rotated or revoked, and is not used any more; set the one in %s, or none",
				l.File)
		case h != r.hash && given.Weak() && !l.Joined:
			note = fmt.Sprintf("%v; it is not used", errWeak)
		case h != r.hash && l.Joined:
			note = fmt.Sprintf("this server has joined with it, and only the first server's settings choose the cluster's token; set the one in %s, or none", l.File)
		default:
			if given.Weak() { // from the time before this rule
				note = errWeak.Error()
			}
			return note, t.set(ctx, l, r, given, log)
		}
	}
	if note == "" && l.ID == AgentID && r.hash != "" && !r.Password && !r.Renews && r.Expires.IsZero() {
		note = "it never ends, as the first one of earlier releases; `umiak token rotate agent` gives one that ends, and that this server renews in " + l.File
	}
	return note, t.syncFile(ctx, l, r, log)
}

// set makes the token what the user has set.
func (t Tokens) set(ctx context.Context, l LongLived, r Record, given token.Token, log *slog.Logger) error {
	own := token.Token{CA: t.CA, ID: l.ID, Secret: given.Secret}
	if h := token.HashSecret(given.Secret); r.hash != h || r.Kind != l.Kind || !r.Password {
		if r.hash != "" && r.hash != h {
			log.Warn("the token that is set differs from the one the cluster had; the old one is refused from now on",
				"token", l.ID)
		}
		r.replace(h)
		r.Kind, r.Password = l.Kind, true
		r.lasting()
		if err := t.seal(&r, own); err != nil {
			return err
		}
		if _, err := t.secrets().Update(ctx, r.secret(), metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("set token %s: %w", l.ID, err)
		}
	}
	return l.write(own)
}

// syncFile makes the file hold the cluster's token.
func (t Tokens) syncFile(ctx context.Context, l LongLived, r Record, log *slog.Logger) error {
	have, err := l.read()
	if err != nil {
		return err
	}
	sealed, errSealed := t.open(r)
	switch good := have.Secret != "" && token.HashSecret(have.Secret) == r.hash; {
	case good && errSealed != nil && t.Secret != nil:
		// For the other servers; theirs may be the keys of before.
		if err := t.seal(&r, token.Token{CA: t.CA, ID: l.ID, Secret: have.Secret}); err != nil {
			return err
		}
		if _, err := t.secrets().Update(ctx, r.secret(), metav1.UpdateOptions{}); err != nil &&
			!apierrors.IsConflict(err) {
			return fmt.Errorf("seal token %s: %w", l.ID, err)
		}
	case good:
	case errSealed == nil && r.hash != "":
		log.Info("this token was rotated on another server, its file has the new one", "token", l.ID, "file", l.File)
		have = sealed
	case have.Secret != "":
		log.Warn("this token was rotated or revoked, its file goes away", "token", l.ID, "file", l.File)
		if err := os.Remove(l.File); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the file of token %s: %w", l.ID, err)
		}
		return nil
	default:
		return nil
	}
	have.CA, have.ID = t.CA, l.ID // the CA may have been replaced
	return l.write(have)
}

func (t Tokens) cas() []string { return append([]string{t.CA}, t.Former...) }

// first makes the token. The file comes first: after a crash between the two its secret is taken.
func (t Tokens) first(ctx context.Context, l LongLived) error {
	tok, err := l.read()
	if err != nil {
		return err
	}
	r := Record{ID: l.ID, Kind: l.Kind, Description: "made at the first start"}
	if l.Given != "" && l.Server != "" {
		r.SetOn = []string{l.Server}
	}
	switch {
	case l.Given != "":
		if tok, err = l.Check("token", t.cas()...); err != nil {
			return err
		}
		if tok.Weak() {
			return fmt.Errorf("%s: %w", l.ID, errWeak)
		}
		tok.CA, tok.ID, r.Password, r.Description = t.CA, l.ID, true, "set by the user"
	case tok.Secret == "" || tok.CA != t.CA || tok.ID != l.ID:
		tok = token.New(t.CA, l.ID)
	}
	if err := l.write(tok); err != nil {
		return err
	}
	r.hash = token.HashSecret(tok.Secret)
	if l.ID == AgentID && !r.Password {
		r.renewing(t.now())
	}
	if err := t.seal(&r, tok); err != nil {
		return err
	}
	_, err = t.secrets().Create(ctx, r.secret(), metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) { // another server that starts at the same time
		return fmt.Errorf("create token %s: %w", l.ID, err)
	}
	return nil
}

// read returns what the file holds, or nothing.
func (l LongLived) read() (token.Token, error) {
	raw, err := os.ReadFile(l.File)
	if errors.Is(err, fs.ErrNotExist) {
		return token.Token{}, nil
	}
	if err != nil {
		return token.Token{}, fmt.Errorf("read token %s: %w", l.ID, err)
	}
	t, err := token.Parse(string(raw))
	if err != nil {
		return token.Token{}, fmt.Errorf("read token %s from %s: %w", l.ID, l.File, err)
	}
	return t, nil
}

// write spares the flash when nothing changes.
func (l LongLived) write(t token.Token) error {
	line := t.Line() + "\n"
	if old, err := os.ReadFile(l.File); err == nil && string(old) == line {
		return os.Chmod(l.File, 0o600)
	}
	return atomicfile.Write(l.File, []byte(line), 0o600)
}
