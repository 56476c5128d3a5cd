// Package logging makes one structured log of everything that runs in the process.
//
// Umiak's own packages log with slog. The libraries' loggers (klog of Kubernetes and flannel, logrus of
// containerd and kine, the standard log package of others) are led into the same handler, each record
// with a `component` field found from the package that wrote it. Libraries speak one level softer than
// umiak does: their "error" is umiak's "warn", their "info" umiak's "debug", so a quiet log stays quiet.
//
// The package is called once, from cmd/.
package logging

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

// Config is what a user may choose.
type Config struct {
	Level  string `key:"log-level" default:"info" usage:"how much to log: debug, info, warn or error"`
	Format string `key:"log-format" default:"text" usage:"text or json"`
}

// Validate names the key that is wrong and what it may be.
func (c Config) Validate() error {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.Level)); err != nil {
		return fmt.Errorf("log-level: %q is not one of debug, info, warn, error", c.Level)
	}
	if c.Format != "text" && c.Format != "json" {
		return fmt.Errorf("log-format: %q is neither text nor json", c.Format)
	}
	return nil
}

// Quiet silences the libraries' loggers, unless all is to be shown.
type Quiet struct{ lib *library }

// Hush silences all libraries for good: while a process stops, they complain of each other's absence.
func (q *Quiet) Hush() {
	if q.lib.limits != nil {
		q.lib.min.Set(slog.LevelError + 1)
	}
}

// Muffle silences, or no longer silences, the libraries that have nothing to do but complain while the datastore takes
// no writes. That it does not is for its owner to log, once.
func (q *Quiet) Muffle(on bool) {
	if q.lib.limits != nil {
		q.lib.muffled.Store(on)
	}
}

// muffled are the components that live from the datastore.
var muffled = map[string]bool{
	"kube-apiserver": true, "kube-controller-manager": true, "kube-scheduler": true, "kubernetes": true, "client-go": true,
	"etcd": true, "grpc": true, "kine": true,
}

// expected reports whether a record tells of what is meant to be, or of what somebody else reports better: a webhook that
// refuses a request has done its work, and whoever asked is told.
func expected(r slog.Record) bool {
	const refused = "denied the request"
	if strings.HasPrefix(r.Message, "rejected by webhook") || strings.Contains(r.Message, refused) {
		return true
	}
	// kine's server writes out each request that fails, values included. The API server reports the error.
	if strings.HasPrefix(r.Message, "error in txn ") || strings.HasPrefix(r.Message, "error in put ") {
		return true
	}
	found := false
	r.Attrs(func(a slog.Attr) bool {
		found = a.Key == "err" && strings.Contains(a.Value.String(), refused)
		return !found
	})
	return found
}

// Setup returns umiak's logger and leads the libraries' loggers into it. It is for main: it sets
// process-wide state of those libraries.
func Setup(c Config, w io.Writer) (own *slog.Logger, quiet *Quiet, err error) {
	if err := c.Validate(); err != nil {
		return nil, nil, err
	}
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // validated above
	opts := &slog.HandlerOptions{Level: slog.Level(-128)}
	var h slog.Handler = slog.NewTextHandler(w, opts)
	if c.Format == "json" {
		h = slog.NewJSONHandler(w, opts)
	}
	lib := &library{Handler: h, min: &slog.LevelVar{}, muffled: &atomic.Bool{}}
	lib.min.Set(libraryLevel(level))
	if level > slog.LevelDebug {
		lib.limits = &limits{}
	}
	klog.SetSlogLogger(slog.New(lib))
	logrus.SetOutput(io.Discard)
	logrus.SetReportCaller(true)
	logrus.SetLevel(logrusLevel(lib.min.Level()))
	logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	logrus.AddHook(hook{lib})
	own = slog.New(&leveled{Handler: h, min: level})
	slog.SetDefault(own)
	// SetDefault made the log package write to own at info; what uses it is a library.
	log.SetFlags(0)
	log.SetOutput(stdlog{lib})
	return own, &Quiet{lib}, nil
}

// libraryLevel is the least level at which a library's record is shown.
func libraryLevel(own slog.Level) slog.Level {
	switch {
	case own <= slog.LevelDebug:
		return slog.LevelInfo
	case own <= slog.LevelInfo:
		return slog.LevelWarn
	}
	return slog.LevelError
}

func logrusLevel(l slog.Level) logrus.Level {
	switch {
	case l <= slog.LevelInfo:
		return logrus.InfoLevel
	case l <= slog.LevelWarn:
		return logrus.WarnLevel
	}
	return logrus.ErrorLevel
}

type leveled struct {
	slog.Handler
	min slog.Level
}

func (h *leveled) Enabled(_ context.Context, l slog.Level) bool { return l >= h.min }
func (h *leveled) WithAttrs(a []slog.Attr) slog.Handler {
	return &leveled{h.Handler.WithAttrs(a), h.min}
}
func (h *leveled) WithGroup(n string) slog.Handler { return &leveled{h.Handler.WithGroup(n), h.min} }

// library is the handler behind the libraries' loggers: it adds the component.
type library struct {
	slog.Handler
	min     *slog.LevelVar
	limits  *limits
	muffled *atomic.Bool
}

func (h *library) Enabled(_ context.Context, l slog.Level) bool {
	return l >= h.min.Level() || l == slog.LevelInfo && inFatal()
}
func (h *library) WithAttrs(a []slog.Attr) slog.Handler {
	return &library{h.Handler.WithAttrs(a), h.min, h.limits, h.muffled}
}
func (h *library) WithGroup(n string) slog.Handler {
	return &library{h.Handler.WithGroup(n), h.min, h.limits, h.muffled}
}

func (h *library) Handle(ctx context.Context, r slog.Record) error {
	if !h.Enabled(ctx, r.Level) {
		return nil // logr does not ask for errors
	}
	final := inFatal()
	if r.Level == slog.LevelInfo && final {
		r.Level = slog.LevelError
	}
	fn := ""
	if r.PC != 0 {
		f, _ := runtime.CallersFrames([]uintptr{r.PC}).Next()
		fn = f.Function
	}
	name := component(fn)
	if r.Level >= slog.LevelError {
		exits.note(name, r, final)
	}
	if h.muffled.Load() && muffled[name] || h.limits != nil && expected(r) {
		return nil
	}
	// A library's error is often something that it tries again; whether anything of umiak's fails is
	// said by umiak.
	pass, skipped := h.limits.pass(r)
	if !pass {
		return nil
	}
	if skipped > 0 {
		r.AddAttrs(slog.Int("skipped-before", skipped))
	}
	r.Level -= slog.LevelError - slog.LevelWarn
	r.Message = shorten(strings.TrimSpace(r.Message))
	r.AddAttrs(slog.String("component", name))
	return h.Handler.Handle(ctx, r)
}

// longest is how much of a library's message is kept: kine, for one, logs whole transactions.
const longest = 1000

func shorten(s string) string {
	if len(s) > longest {
		return strings.ToValidUTF8(s[:longest], "") + fmt.Sprintf("… (%d bytes in all)", len(s))
	}
	return s
}

// hook leads logrus records into the library handler.
type hook struct{ h *library }

func (hook) Levels() []logrus.Level { return logrus.AllLevels }

func (k hook) Fire(e *logrus.Entry) error {
	level := slog.LevelInfo
	switch {
	case e.Level <= logrus.ErrorLevel:
		level = slog.LevelError
	case e.Level == logrus.WarnLevel:
		level = slog.LevelWarn
	}
	if !k.h.Enabled(context.Background(), level) {
		return nil
	}
	r := slog.NewRecord(e.Time, level, e.Message, 0)
	if e.Caller != nil {
		r.PC = e.Caller.PC
	}
	for name, v := range e.Data {
		r.AddAttrs(slog.Any(name, v))
	}
	return k.h.Handle(context.Background(), r)
}

// stdlog takes what libraries write with the standard log package.
type stdlog struct{ h *library }

func (s stdlog) Write(p []byte) (int, error) {
	if s.h.Enabled(context.Background(), slog.LevelInfo) {
		slog.New(s.h).Info(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// component names what a library function belongs to, from its package path: the longest prefix wins.
func component(function string) string {
	best, name := 0, "library"
	for prefix, c := range components {
		if len(prefix) > best && strings.HasPrefix(function, prefix) {
			best, name = len(prefix), c
		}
	}
	return name
}

var components = map[string]string{
	"k8s.io/":                                           "kubernetes",
	"k8s.io/apiserver/":                                 "kube-apiserver",
	"k8s.io/apiextensions-apiserver/":                   "kube-apiserver",
	"k8s.io/kube-aggregator/":                           "kube-apiserver",
	"k8s.io/kubernetes/cmd/kube-apiserver":              "kube-apiserver",
	"k8s.io/kubernetes/pkg/controlplane":                "kube-apiserver",
	"k8s.io/kubernetes/pkg/registry":                    "kube-apiserver",
	"k8s.io/kubernetes/pkg/kubeapiserver":               "kube-apiserver",
	"k8s.io/kubernetes/plugin/":                         "kube-apiserver",
	"k8s.io/kubernetes/cmd/kube-controller":             "kube-controller-manager",
	"k8s.io/kubernetes/pkg/controller":                  "kube-controller-manager",
	"k8s.io/controller-manager":                         "kube-controller-manager",
	"k8s.io/endpointslice":                              "kube-controller-manager",
	"k8s.io/kubernetes/cmd/kube-scheduler":              "kube-scheduler",
	"k8s.io/kubernetes/pkg/scheduler":                   "kube-scheduler",
	"k8s.io/kubernetes/cmd/kubelet":                     "kubelet",
	"k8s.io/kubernetes/pkg/kubelet":                     "kubelet",
	"k8s.io/kubernetes/pkg/volume":                      "kubelet",
	"k8s.io/kubernetes/pkg/proxy":                       "proxy",
	"k8s.io/cri-client":                                 "kubelet",
	"k8s.io/client-go":                                  "client-go",
	"github.com/google/cadvisor":                        "kubelet",
	"github.com/containerd/":                            "containerd",
	"github.com/k3s-io/kine":                            "kine",
	"github.com/coredns/":                               "coredns",
	"github.com/flannel-io/":                            "flannel",
	"go.etcd.io/":                                       "etcd",
	"google.golang.org/grpc":                            "grpc",
	"github.com/umiak-io/umiak/agent/dataplane/proxy":   "proxy",
	"github.com/umiak-io/umiak/agent/dataplane/network": "network",
	"github.com/umiak-io/umiak/datastore":               "datastore",
	"github.com/umiak-io/umiak/server":                  "server",
	"github.com/umiak-io/umiak/agent":                   "agent",
}
