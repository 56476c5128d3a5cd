package joinapi

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/internal/wallclock"
)

// FirstTokensConfig describes the tokens that the cluster has from its first start on.
type FirstTokensConfig struct {
	Access Access
	Tokens []LongLived
	// Changed is called when the files of tokens may have changed; it must not block.
	Changed func()
	Log     *slog.Logger
}

// FirstTokens maintains the tokens of the first start, and their files on this server.
type FirstTokens struct {
	cfg   FirstTokensConfig
	stale lifecycle.Signal
	notes atomic.Pointer[map[string]string] // what is wrong with tokens in the settings, by id
}

// NewFirstTokens checks the tokens that the user has set. Nothing is read or written yet.
func NewFirstTokens(cfg FirstTokensConfig) (*FirstTokens, error) {
	ca, former, err := CAHash(cfg.Access.ServerCA())
	if err != nil {
		return nil, err
	}
	for _, t := range cfg.Tokens {
		if t.Given == "" || t.Joined {
			continue
		}
		_, err := t.Check(t.ID+" token", append(former, ca)...)
		if _, missing := os.Stat(t.File); err != nil && (!errors.Is(err, errOtherCA) || missing != nil) {
			return nil, err // where there is a file the CA was replaced, and Run reports that the setting is ignored
		}
	}
	cfg.Log = cfg.Log.With("component", "join")
	return &FirstTokens{cfg: cfg, stale: lifecycle.NewSignal()}, nil
}

// Stale makes Run look at the tokens again.
func (f *FirstTokens) Stale() { f.stale.Set() }

// Run maintains the tokens until ctx ends. Nothing waits for it: where a write is refused, machines join with the
// tokens that exist.
func (f *FirstTokens) Run(ctx context.Context, ready func()) error {
	alarm, err := wallclock.NewAlarm()
	if err != nil {
		return err
	}
	defer alarm.Close()
	for {
		due, err := f.ensure(ctx)
		if err != nil {
			return err
		}
		ready()
		if !due.IsZero() {
			if err := alarm.Set(max(time.Until(due), time.Minute)); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-f.stale:
		case _, ok := <-alarm.Rung():
			if !ok {
				return alarm.Err()
			}
		}
	}
}

// ensure makes the tokens, and writes their files as the cluster has them. It returns when one of them has to be
// renewed, zero for never.
func (f *FirstTokens) ensure(ctx context.Context) (due time.Time, err error) {
	tokens, err := f.cfg.Access.Tokens()
	if err != nil {
		return due, err
	}
	notes := map[string]string{}
	for _, t := range f.cfg.Tokens {
		err := soon(ctx, func() error {
			note, err := tokens.Ensure(ctx, t, f.cfg.Log)
			if note != "" {
				notes[t.ID] = note
			}
			if err == nil && t.ID == AgentID {
				due, err = tokens.Renew(ctx, t, f.cfg.Log)
			}
			return err
		})
		if err != nil {
			return due, err
		}
	}
	old := f.notes.Swap(&notes)
	for id, note := range notes {
		if old == nil || (*old)[id] != note {
			f.cfg.Log.Warn("a token of the first start needs a look", "token", id, "why", note)
		}
	}
	f.cfg.Changed()
	return due, nil
}

// Rows returns what status shows about tokens in the settings that are not used.
func (f *FirstTokens) Rows() (out []status.Row) {
	notes := f.notes.Load()
	if notes == nil {
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(*notes)) {
		out = append(out, status.Row{Name: id + " token", State: "look at this", Detail: (*notes)[id]})
	}
	return out
}
