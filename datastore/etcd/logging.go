package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// The same message is written three times in ten minutes at most: a member that starts again tries to publish
// itself without a pause until it has applied its log, and complains each time.
const (
	logTick     = 10 * time.Minute
	logsPerTick = 3
)

// zapLogger writes etcd's messages to log. etcd says at level info what interests its developers; that is
// debug here. What it would end the process for, or panic about, goes to fatal instead.
// While hushed is true, everything is.
func zapLogger(log *slog.Logger, fatal chan<- error, hushed *atomic.Bool) *zap.Logger {
	if hushed == nil {
		hushed = &atomic.Bool{}
	}
	return zap.New(zapcore.NewSamplerWithOptions(core{log, hushed}, logTick, logsPerTick, 0), zap.WithFatalHook(endGoroutine{fatal}), zap.WithPanicHook(endGoroutine{fatal}))
}

// expected are complaints about what is meant to be as it is, or comes right by itself within seconds of a
// start.
var expected = map[string]bool{
	"Running http and grpc server on single port. This is not recommended for production.": true,
	"simple token is not cryptographically signed":                                         true,
	"Failed to detect schema version":                                                      true,
	"failed to update storage version":                                                     true,
	"rejecting promote learner: learner is not ready":                                      true,
	// Members that come and go are named by watchPeers.
	"prober detected unhealthy status":                   true,
	"lost TCP streaming connection with remote peer":     true,
	"peer became inactive (message send to peer failed)": true,
	"request stats": true, // of what "apply request took too long" says
}

// endGoroutine is what becomes of a wish to end the process.
type endGoroutine struct{ fatal chan<- error }

// OnWrite is part of zap's hook.
func (e endGoroutine) OnWrite(ce *zapcore.CheckedEntry, fields []zapcore.Field) {
	attrs := encode(fields)
	select {
	case e.fatal <- fmt.Errorf("etcd: %s %v", ce.Message, attrs):
	default:
	}
	runtime.Goexit()
}

// core is a zapcore.Core on a slog.Logger.
type core struct {
	log    *slog.Logger
	hushed *atomic.Bool
}

func (c core) level(l zapcore.Level) slog.Level {
	switch {
	case c.hushed.Load():
		return slog.LevelDebug
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// Enabled is part of zapcore.Core.
func (c core) Enabled(l zapcore.Level) bool { return c.log.Enabled(context.Background(), c.level(l)) }

// With is part of zapcore.Core.
func (c core) With(fields []zapcore.Field) zapcore.Core {
	return core{c.log.With(encode(fields)...), c.hushed}
}

// Check is part of zapcore.Core.
func (c core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if expected[e.Message] {
		return ce
	}
	if c.Enabled(e.Level) || e.Level >= zapcore.DPanicLevel {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write is part of zapcore.Core.
func (c core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.log.Log(context.Background(), c.level(e.Level), e.Message, encode(fields)...)
	return nil
}

// Sync is part of zapcore.Core.
func (c core) Sync() error { return nil }

func encode(fields []zapcore.Field) []any {
	m := zapcore.NewMapObjectEncoder()
	out := make([]any, 0, 2*len(fields))
	for _, f := range fields {
		f.AddTo(m)
		if v, ok := m.Fields[f.Key]; ok {
			out = append(out, f.Key, v)
		}
	}
	return out
}
