package controlplane

import (
	"context"
	"time"

	"gopkg.in/go-jose/go-jose.v2/jwt"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"github.com/umiak-io/umiak/internal/wallclock"
)

// undoubted issues ServiceAccount tokens that stay valid when a clock that was years ahead is set. The kubelet renews
// a pod's token by its end alone, so the pods of before would have tokens that are not valid yet, for years. As
// certificates are valid from 1970 on, tokens of a doubted clock are from the release on; how long they last does not
// change.
type undoubted struct {
	serviceaccount.TokenGenerator
	now func() time.Time
}

// GenerateToken issues a token.
func (u undoubted) GenerateToken(ctx context.Context, claims *jwt.Claims, privateClaims any) (string, error) {
	if now := u.now(); now.After(wallclock.Released) && wallclock.Doubt(now) != "" {
		c := *claims
		c.IssuedAt, c.NotBefore = jwt.NewNumericDate(wallclock.Released), jwt.NewNumericDate(wallclock.Released)
		claims = &c
	}
	return u.TokenGenerator.GenerateToken(ctx, claims, privateClaims)
}
