package joinapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/internal/token"
)

const (
	// agentTokenLife is the lifetime of a secret of the agents' token of the first start.
	agentTokenLife = 60 * 24 * time.Hour
	// agentTokenOverlap is the time before its end at which a secret is replaced. Both are valid until then.
	agentTokenOverlap = 30 * 24 * time.Hour
	// clockSlack bounds the difference between servers' clocks.
	clockSlack = time.Hour
)

// renewing makes a token one that the servers renew. Where the clock is wrong its end is set later.
func (r *Record) renewing(now time.Time) {
	r.Renews, r.Expires = true, time.Time{}
	if token.CheckClock(now) == nil {
		r.Expires = now.Add(agentTokenLife).Truncate(time.Second)
	}
}

// lasting makes a token one that does not expire.
func (r *Record) lasting() { r.Renews, r.Expires = false, time.Time{} }

// Renew gives the agents' token of the first start another secret when it is due, writes its file, and returns when
// to call it again, zero for never. The secret before is taken until its end: so the file always has a good one, and
// a copy of it, such as one on an SD card, does not stay good for ever.
func (t Tokens) Renew(ctx context.Context, l LongLived, log *slog.Logger) (next time.Time, err error) {
	r, err := t.get(ctx, l.ID)
	if errors.Is(err, errUnknown) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	now := t.now()
	// a server of an earlier release drops the mark when it writes the record
	renews := r.Renews || !r.Password && !r.Expires.IsZero()
	switch {
	case !renews || r.hash == "":
		return time.Time{}, nil
	case token.CheckClock(now) != nil:
		return now.Add(time.Hour), nil
	case r.Expires.IsZero(), r.Expires.After(now.Add(agentTokenLife + clockSlack)): // a clock was wrong
		r.renewing(now)
	case now.Before(r.Expires.Add(-agentTokenOverlap)):
		return r.Expires.Add(-agentTokenOverlap), nil
	default:
		tok := token.New(t.CA, l.ID)
		before, ends := r.hash, r.Expires
		r.replace(token.HashSecret(tok.Secret))
		r.previous, r.previousEnds = before, ends
		r.renewing(now)
		if err := t.seal(&r, tok); err != nil {
			return time.Time{}, err
		}
		// The file comes after: keep opens what is sealed if that is broken off.
		defer func() {
			if err == nil {
				log.Info("the agents' token has a new secret; the one before is taken until its end", "token", l.ID,
					"file", l.File, "until", ends)
				err = l.write(tok)
			}
		}()
	}
	if _, err := t.secrets().Update(ctx, r.secret(), metav1.UpdateOptions{}); err != nil {
		return time.Time{}, fmt.Errorf("renew token %s: %w", l.ID, err)
	}
	return r.Expires.Add(-agentTokenOverlap), nil
}
