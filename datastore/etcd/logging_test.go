package etcd

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// TestLogIsNotFlooded checks that messages are limited, and that every fatal one reaches the channel all the same.
func TestLogIsNotFlooded(t *testing.T) {
	var out bytes.Buffer
	fatal := make(chan error, 200)
	log := zapLogger(slog.New(slog.NewTextHandler(&out, nil)), fatal, nil)
	for range 100 {
		log.Warn("failed to publish", zap.Error(errors.New("too many requests")))
		log.With(zap.Int("member", 1)).Warn("failed to publish")
		log.Info("of interest to developers")
		for _, end := range []func(string, ...zap.Field){log.Fatal, log.Panic} {
			ended := make(chan struct{})
			go func() {
				defer close(ended) // by runtime.Goexit
				end("the disk is full")
			}()
			<-ended
		}
	}
	log.Warn("another message")
	for what, want := range map[string]int{"failed to publish": logsPerTick, "another message": 1, "of interest": 0,
		"the disk is full": 2 * logsPerTick} {
		if n := strings.Count(out.String(), what); n != want {
			t.Errorf("%q is there %d times, not %d", what, n, want)
		}
	}
	if len(fatal) != cap(fatal) {
		t.Errorf("%d of %d reached the channel", len(fatal), cap(fatal))
	}
}
