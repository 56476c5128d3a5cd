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

// A message is logged at most logsPerTick times per logTick: a member that restarts tries to publish itself without a
// pause until it has applied its log, and etcd logs each failure.
const (
	logTick     = 10 * time.Minute
	logsPerTick = 3
)

// zapLogger returns a logger for etcd that writes to log. etcd's level info, which is for its developers, becomes
// debug. A fatal message or panic does not end the process: its error goes to fatal, and its goroutine ends. While
// quiet is true, all levels become debug; nil means never.
func zapLogger(log *slog.Logger, fatal chan<- error, quiet *atomic.Bool) *zap.Logger {
	if quiet == nil {
		quiet = &atomic.Bool{}
	}
	return zap.New(zapcore.NewSamplerWithOptions(core{log, quiet}, logTick, logsPerTick, 0),
		zap.WithFatalHook(endGoroutine{fatal}), zap.WithPanicHook(endGoroutine{fatal}))
}

// expected lists messages that are not logged: warnings about intended settings, and errors that go away within seconds
// of a start.
var expected = map[string]bool{
	"Running http and grpc server on single port. This is not recommended for production.": true,
	"simple token is not cryptographically signed":                                         true,
	"Failed to detect schema version":                                                      true,
	"failed to update storage version":                                                     true,
	"rejecting promote learner: learner is not ready":                                      true,
	// watchPeers logs members that come and go.
	"prober detected unhealthy status":                   true,
	"lost TCP streaming connection with remote peer":     true,
	"peer became inactive (message send to peer failed)": true,
	"request stats": true, // details of "apply request took too long"
}

// endGoroutine is a zapcore.CheckWriteHook that ends the goroutine instead of the process.
type endGoroutine struct{ fatal chan<- error }

// OnWrite implements zapcore.CheckWriteHook.
func (e endGoroutine) OnWrite(ce *zapcore.CheckedEntry, fields []zapcore.Field) {
	attrs := encode(fields)
	select {
	case e.fatal <- fmt.Errorf("etcd: %s %v", ce.Message, attrs):
	default:
	}
	runtime.Goexit()
}

// core is a zapcore.Core that writes to a slog.Logger.
type core struct {
	log   *slog.Logger
	quiet *atomic.Bool
}

func (c core) level(l zapcore.Level) slog.Level {
	switch {
	case c.quiet.Load():
		return slog.LevelDebug
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// Enabled implements zapcore.Core.
func (c core) Enabled(l zapcore.Level) bool { return c.log.Enabled(context.Background(), c.level(l)) }

// With implements zapcore.Core.
func (c core) With(fields []zapcore.Field) zapcore.Core {
	return core{c.log.With(encode(fields)...), c.quiet}
}

// Check implements zapcore.Core.
func (c core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if expected[e.Message] {
		return ce
	}
	if c.Enabled(e.Level) || e.Level >= zapcore.DPanicLevel {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.log.Log(context.Background(), c.level(e.Level), e.Message, encode(fields)...)
	return nil
}

// Sync implements zapcore.Core.
func (c core) Sync() error { return nil }

// encode returns fields as arguments for slog.
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
