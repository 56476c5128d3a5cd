package joinapi

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/umiak-io/umiak/internal/token"
)

var (
	quiet = slog.New(slog.DiscardHandler)
	hash  = strings.Repeat("ab", 32)
)

func TestTokensOfTheFirstStart(t *testing.T) {
	ctx := t.Context()
	tokens := Tokens{Client: fake.NewClientset(), CA: hash}
	l := LongLived{ID: AgentID, Kind: token.Agent, File: filepath.Join(t.TempDir(), "agent-token")}
	ensure := func(l LongLived) string {
		t.Helper()
		if _, err := tokens.Ensure(ctx, l, quiet); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(l.File)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(raw))
	}
	first := ensure(l)
	tok, err := token.Parse(first)
	if err != nil || tok.ID != AgentID || tok.CA != hash {
		t.Fatalf("%q: %v", first, err)
	}
	if info, err := os.Stat(l.File); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if again := ensure(l); again != first {
		t.Error("a restart makes another token")
	}
	// Its CA is replaced: the file has the new one, and what the user has set with the old one is good for as long
	// as that is trusted.
	next := tokens
	tokens.CA, tokens.Former = strings.Repeat("cd", 32), []string{hash}
	if got, err := token.Parse(ensure(l)); err != nil || got.CA != tokens.CA || got.Secret != tok.Secret {
		t.Errorf("with another CA the file has CA %s: %v", got.CA, err)
	}
	given := l
	given.Given = first
	if _, err := given.Check("token", tokens.cas()...); err != nil {
		t.Error(err)
	}
	if _, err := given.Check("token", tokens.CA); err == nil {
		t.Error("a token with a CA that nobody trusts any more is taken")
	}
	tokens = next
	if again := ensure(l); again != first {
		t.Errorf("got %q", again)
	}
	// Another server has no file, and makes no other token.
	other := l
	other.File = filepath.Join(t.TempDir(), "agent-token")
	if got := ensure(other); got != "" {
		t.Errorf("another server has written %q", got)
	}
	// Rotated elsewhere: the file is not true any more.
	rotated, _, err := tokens.Rotate(ctx, AgentID)
	if err != nil || rotated.Secret == tok.Secret {
		t.Fatal(err)
	}
	if got := ensure(l); got != "" {
		t.Errorf("the file still holds %q", got)
	}
	// Revoked: it does not come back.
	if err := tokens.Revoke(ctx, AgentID); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.File, []byte(rotated.Line()), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ensure(l); got != "" {
		t.Errorf("a revoked token is back: %q", got)
	}
	if list, err := tokens.List(ctx); err != nil || len(list) != 1 || list[0].State(time.Now()) != "revoked" {
		t.Errorf("%+v, %v", list, err)
	}
	// Set by the user: it is what he says, from now on.
	l.Given = "my-own-password"
	if got := ensure(l); got != "um1."+hash+".agent.my-own-password" {
		t.Errorf("%q", got)
	}
	for _, bad := range []string{"um1." + hash + ".server.x", "two words"} {
		l.Given = bad
		if _, err := tokens.Ensure(ctx, l, quiet); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestTokensOfSeveralServers: what one server rotates the others' files get, and what was rotated away does not come
// back by the settings of a server.
func TestTokensOfSeveralServers(t *testing.T) {
	ctx := t.Context()
	secret := "the servers' secret"
	tokens := Tokens{Client: fake.NewClientset(), CA: hash,
		Secret: func() ([]byte, error) { return []byte(secret), nil }}
	file := func() LongLived {
		return LongLived{ID: ServerID, Kind: token.Server, File: filepath.Join(t.TempDir(), "token")}
	}
	ensure := func(l LongLived) (line, note string) {
		t.Helper()
		note, err := tokens.Ensure(ctx, l, quiet)
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := os.ReadFile(l.File)
		return strings.TrimSpace(string(raw)), note
	}
	want := func(what, got, note, line string, noted bool) {
		t.Helper()
		if got != line || (note != "") != noted {
			t.Errorf("%s: the file has the wanted token: %v; noted %q", what, got == line, note)
		}
	}
	a, b := file(), file()
	first, _ := ensure(a)
	got, note := ensure(b)
	want("another server", got, note, first, false)
	second, _, err := tokens.Rotate(ctx, ServerID)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []LongLived{a, b} {
		got, note = ensure(l)
		want("after a rotation", got, note, second.Line(), false)
	}
	// The settings of a server still have the first one, as it joined with it.
	left := b
	left.Given = first
	got, note = ensure(left)
	want("a left-over token", got, note, second.Line(), true)
	got, note = ensure(a)
	want("and the others", got, note, second.Line(), false)
	left.Given = second.Line()
	got, note = ensure(left)
	want("the new one in the settings", got, note, second.Line(), false)
	// The CA is replaced, and the ServiceAccount key with it: who has the token seals it anew.
	old := left
	secret, tokens.CA = "another secret", strings.Repeat("cd", 32)
	late := file()
	if got, _ = ensure(late); got != "" {
		t.Errorf("opened with another secret: %d bytes", len(got))
	}
	now := token.Token{CA: tokens.CA, ID: ServerID, Secret: second.Secret}.Line()
	got, note = ensure(a)
	want("after the CA", got, note, now, false)
	got, note = ensure(late)
	want("who comes late", got, note, now, false)
	got, note = ensure(old)
	want("set with the CA of before", got, note, now, false)
	old.Given = first
	got, note = ensure(old)
	want("the first one, with the CA of before", got, note, now, true)
	// Rotated from a machine that is no server: nobody can tell the others.
	elsewhere := tokens
	elsewhere.Secret = nil
	if _, _, err := elsewhere.Rotate(ctx, ServerID); err != nil {
		t.Fatal(err)
	}
	got, note = ensure(a)
	want("rotated elsewhere", got, note, "", false)
	// A password of the user's own counts, once.
	a.Given, a.Server, late.Server = "my-own-password", "a", "late"
	got, note = ensure(a)
	want("a password", got, note, "um1."+tokens.CA+".server.my-own-password", false)
	got, note = ensure(b)
	want("and the others", got, note, "um1."+tokens.CA+".server.my-own-password", false)
	third, rotated, err := tokens.Rotate(ctx, ServerID)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(rotated.SetOn, []string{"a"}) {
		t.Errorf("after the rotation, the old one is said to stand in the settings of %q", rotated.SetOn)
	}
	got, note = ensure(a)
	want("a password that was rotated away", got, note, third.Line(), true)
	// A server that joined with a password that was rotated away so long ago that nobody remembers it.
	late.Given, late.Joined = "forgotten-long-ago", true
	got, note = ensure(late)
	want("what a server has joined with", got, note, third.Line(), true)
	late.Given = "um1." + hash + ".q3tkj5xa.of-another-id"
	got, note = ensure(late)
	want("a made token with which a server has joined", got, note, third.Line(), true)
	late.Given = third.Line()
	got, note = ensure(late)
	want("the present one on a server that has joined", got, note, third.Line(), false)
	late.Given, late.Joined = "", false
	ensure(late)
	if err := tokens.Revoke(ctx, ServerID); err != nil {
		t.Fatal(err)
	}
	a.Given = third.Line()
	got, note = ensure(a)
	want("a revoked one", got, note, "", true)
}

// TestShortPasswords: a new one is refused; one that the cluster has from before goes on and is named.
func TestShortPasswords(t *testing.T) {
	tokens := Tokens{Client: fake.NewClientset(), CA: hash}
	l := LongLived{ID: ServerID, Kind: token.Server, File: filepath.Join(t.TempDir(), "token"), Given: "hunter2"}
	if _, err := tokens.Ensure(t.Context(), l, quiet); err == nil ||
		!strings.Contains(err.Error(), "less than 12 characters") {
		t.Errorf("a new cluster: %v", err)
	}
	old := Record{ID: ServerID, Kind: token.Server, Password: true, hash: token.HashSecret("hunter2")}
	if _, err := tokens.secrets().Create(t.Context(), old.secret(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for given, want := range map[string]string{"hunter2": "less than 12", "hunter3": "it is not used",
		"hunter2-hunter2": ""} {
		l.Given = given
		if _, err := tokens.secrets().Update(t.Context(), old.secret(), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		note, err := tokens.Ensure(t.Context(), l, quiet)
		if err != nil || (note == "") != (want == "") || !strings.Contains(note, want) {
			t.Errorf("%s: %q, %v", given, note, err)
		}
		r, err := tokens.get(t.Context(), ServerID)
		if kept := r.hash == old.hash; err != nil || kept == (want == "") {
			t.Errorf("%s: the old one is kept: %v, %v", given, kept, err)
		}
	}
	// As k3s printed it: what counts is the password.
	l.Given = "K10" + strings.Repeat("cd", 32) + "::server:hunter2-of-k3s"
	if note, err := tokens.Ensure(t.Context(), l, quiet); err != nil || note != "" {
		t.Errorf("%q, %v", note, err)
	}
	if raw, err := os.ReadFile(l.File); err != nil || strings.TrimSpace(string(raw)) != "um1."+hash+
		".server.hunter2-of-k3s" {
		t.Errorf("%s, %v", raw, err)
	}
}

func TestCreateAndRevoke(t *testing.T) {
	ctx := t.Context()
	client := fake.NewClientset()
	tokens := Tokens{Client: client, CA: hash}
	tok, rec, err := tokens.Create(ctx, Spec{Kind: token.Server, TTL: time.Hour, SingleUse: true, Description: "x"})
	if err != nil || rec.UsesLeft == nil || time.Until(rec.Expires) > time.Hour {
		t.Fatalf("%+v, %v", rec, err)
	}
	s, err := client.CoreV1().Secrets(Namespace).Get(ctx, tokenPrefix+tok.ID, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range s.Data {
		if strings.Contains(string(v), tok.Secret) {
			t.Errorf("the secret itself is kept, as %s", k)
		}
	}
	if err := tokens.use(ctx, tok.ID); err != nil {
		t.Error(err)
	}
	if err := tokens.use(ctx, tok.ID); !errors.Is(err, errUsedUp) {
		t.Error(err)
	}
	if list, err := tokens.List(ctx); err != nil || list[0].State(time.Now()) != "used up" ||
		list[0].State(time.Now().Add(2*time.Hour)) != "expired" {
		t.Errorf("%+v, %v", list, err)
	}
	for _, id := range []string{tok.ID, tok.ID} {
		err = tokens.Revoke(ctx, id)
	}
	if !errors.Is(err, errUnknown) {
		t.Error(err)
	}
	if err := tokens.Revoke(ctx, "../x"); err == nil {
		t.Error("a path is an id")
	}
}

func TestReserve(t *testing.T) {
	tokens := Tokens{Client: fake.NewClientset(), CA: hash}
	if err := tokens.claim(t.Context(), "n", "somebody's", "id", token.Agent, nil); err != nil {
		t.Fatal(err)
	}
	if err := tokens.claim(t.Context(), "n", "another's", "id", token.Agent, nil); !errors.Is(err, errNameTaken) {
		t.Error(err)
	}
	held, err := tokens.secrets().Get(t.Context(), "n"+nodeSuffix, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	held.Data[keyTaints] = []byte(`[{"key":"a","effect":"NoSchedule"}]`)
	if _, err := tokens.secrets().Update(t.Context(), held, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		if taken, err := tokens.Reserve(t.Context(), "n", "the server's", nil); err != nil || taken != want {
			t.Errorf("time %d: %v, %v", i, taken, err)
		}
	}
	now, err := tokens.secrets().Get(t.Context(), "n"+nodeSuffix, metav1.GetOptions{})
	if err != nil || string(now.Data[keyTaints]) != string(held.Data[keyTaints]) || !owns(now, "the server's") {
		t.Errorf("the record is %v, %v", now, err)
	}
}

func TestPasswordTries(t *testing.T) {
	now := time.Unix(0, 0)
	f := newFailures(func() time.Time { return now })
	a, b := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::ffff")
	for range triesPerMinute {
		if !f.try(a) {
			t.Fatal("blocked too early")
		}
	}
	if f.try(b) || !f.try(netip.MustParseAddr("192.0.2.1")) {
		t.Error("the wrong ones are blocked")
	}
	if now = now.Add(time.Minute); !f.try(a) {
		t.Error("blocked for ever")
	}
	for range 10 * triesPerMinute { // what was right is no try
		if f.right(a); !f.try(a) {
			t.Fatal("blocked by right ones")
		}
	}
}

func FuzzParseSecret(f *testing.F) {
	f.Add("agent", "2026-01-01T00:00:00Z", "1")
	f.Fuzz(func(_ *testing.T, kind, expires, uses string) {
		_, _ = parse(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: tokenPrefix + "x"}, Type: tokenType,
			Data: map[string][]byte{keyKind: []byte(kind), keyExpires: []byte(expires), keyUses: []byte(uses)}})
	})
}

// TestTheAgentsTokenIsRenewed: each secret ends, the file always has a good one, and one that was copied is taken
// until its end.
func TestTheAgentsTokenIsRenewed(t *testing.T) {
	ctx, now := t.Context(), time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	tokens := Tokens{Client: fake.NewClientset(), CA: hash, Now: func() time.Time { return now },
		Secret: func() ([]byte, error) { return []byte("the servers' secret"), nil }}
	file := func() LongLived {
		return LongLived{ID: AgentID, Kind: token.Agent, File: filepath.Join(t.TempDir(), "agent-token")}
	}
	a, b := file(), file()
	ensure := func(l LongLived) token.Token {
		t.Helper()
		if note, err := tokens.Ensure(ctx, l, quiet); err != nil || note != "" {
			t.Fatalf("%q, %v", note, err)
		}
		next, err := tokens.Renew(ctx, l, quiet)
		if err != nil || next.Sub(now) > agentTokenLife || !next.After(now) {
			t.Fatalf("next %v, %v", next, err)
		}
		tok, err := l.read()
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	taken := func(what string, tok token.Token, want bool) {
		t.Helper()
		ctx, cancel := context.WithCancel(ctx)
		k, stop, err := tokens.follow(ctx, func() {}, newMembers(""))
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		defer cancel()
		r, why := k.token(tok.ID, tok.Secret, now)
		if (why == "") != want || r.ID != AgentID {
			t.Errorf("%s: taken %v, %s", what, why == "", why)
		}
	}
	first := ensure(a)
	ensure(b)
	taken("the first one", first, true)
	now = now.Add(agentTokenLife - agentTokenOverlap - time.Hour)
	if ensure(a) != first {
		t.Error("renewed too early")
	}
	now = now.Add(2 * time.Hour)
	second := ensure(a)
	if second == first {
		t.Fatal("not renewed")
	}
	if ensure(b) != second {
		t.Error("another server's file has not the new one")
	}
	taken("the first one, a month later", first, true)
	taken("the second one", second, true)
	now = now.Add(agentTokenOverlap)
	taken("the first one after its end", first, false)
	third := ensure(b)
	taken("the second one beside the third", second, true)
	// Rotating it ends both at once.
	rotated, _, err := tokens.Rotate(ctx, AgentID)
	if err != nil {
		t.Fatal(err)
	}
	taken("what was renewed away, after a rotation", second, false)
	taken("the third one, after a rotation", third, false)
	taken("the rotated one", rotated, true)
	// All servers were off for long: tokens that have ended are cleared away, and this one is renewed and not made as
	// it was.
	now = now.Add(10 * agentTokenLife)
	if _, _, err := tokens.Create(ctx, Spec{Kind: token.Agent}); err != nil {
		t.Fatal(err)
	}
	after := ensure(a)
	taken("the one that has ended", rotated, false)
	taken("the one after it", after, true)
	if err := tokens.Revoke(ctx, AgentID); err != nil {
		t.Fatal(err)
	}
	taken("a revoked one", after, false)
	if next, err := tokens.Renew(ctx, a, quiet); err != nil || !next.IsZero() {
		t.Errorf("a revoked one is renewed: %v, %v", next, err)
	}
}

// TestTheEndIsSetWhenTheClockIs: a first start at a wrong clock gives no token that has ended once the clock is right.
func TestTheEndIsSetWhenTheClockIs(t *testing.T) {
	now := time.Unix(1000, 0)
	tokens := Tokens{Client: fake.NewClientset(), CA: hash, Now: func() time.Time { return now }}
	l := LongLived{ID: AgentID, Kind: token.Agent, File: filepath.Join(t.TempDir(), "agent-token")}
	ends := func() time.Time {
		t.Helper()
		if _, err := tokens.Ensure(t.Context(), l, quiet); err != nil {
			t.Fatal(err)
		}
		if _, err := tokens.Renew(t.Context(), l, quiet); err != nil {
			t.Fatal(err)
		}
		r, err := tokens.get(t.Context(), AgentID)
		if err != nil {
			t.Fatal(err)
		}
		return r.Expires
	}
	if at := ends(); !at.IsZero() {
		t.Errorf("at a wrong clock: %v", at)
	}
	first, _ := l.read()
	// far ahead, then right
	for _, at := range []time.Time{time.Date(2038, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)} {
		now = at
		if got := ends(); !got.Equal(at.Add(agentTokenLife)) {
			t.Errorf("at %v it ends %v", at, got)
		}
	}
	if tok, err := l.read(); err != nil || tok != first {
		t.Errorf("the secret is another one: %v", err)
	}
}
