package controlplane

import (
	"testing"
	"time"

	"gopkg.in/go-jose/go-jose.v2/jwt"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"github.com/umiak-io/umiak/internal/wallclock"
	"github.com/umiak-io/umiak/server/pki"
)

// TestTokensOfAClockThatWasAhead: they are valid when the clock is set. Those of a right clock say when they were
// issued.
func TestTokensOfAClockThatWasAhead(t *testing.T) {
	p, err := pki.Ensure(pki.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	key, err := keyutil.PrivateKeyFromFile(p.ServiceAccountKey())
	if err != nil {
		t.Fatal(err)
	}
	real, err := serviceaccount.JWTTokenGenerator("here", key)
	if err != nil {
		t.Fatal(err)
	}
	right := wallclock.Released.AddDate(0, 1, 0)
	for _, c := range []struct {
		at    time.Time
		early bool // valid from before it was issued
	}{{right, false}, {wallclock.Released.AddDate(10, 0, 0), true}, {time.Unix(86400, 0), false}} {
		u := undoubted{TokenGenerator: real, now: func() time.Time { return c.at }}
		issued := jwt.Claims{IssuedAt: jwt.NewNumericDate(c.at), NotBefore: jwt.NewNumericDate(c.at),
			Expiry: jwt.NewNumericDate(c.at.Add(time.Hour))}
		raw, err := u.GenerateToken(t.Context(), &issued, struct{}{})
		if err != nil {
			t.Fatal(err)
		}
		token, err := jwt.ParseSigned(raw)
		if err != nil {
			t.Fatal(err)
		}
		var got jwt.Claims
		if err := token.UnsafeClaimsWithoutVerification(&got); err != nil {
			t.Fatal(err)
		}
		if c.at.After(right) {
			if err := got.ValidateWithLeeway(jwt.Expected{Time: right}, 0); err != nil {
				t.Errorf("issued at %v, with the clock right: %v", c.at, err)
			}
		}
		if early := got.NotBefore.Time().Before(c.at); early != c.early ||
			!got.Expiry.Time().Equal(c.at.Add(time.Hour)) {
			t.Errorf("issued at %v: from %v to %v", c.at, got.NotBefore.Time(), got.Expiry.Time())
		}
		if !issued.NotBefore.Time().Equal(c.at) {
			t.Error("the caller's claims were changed")
		}
	}
}
