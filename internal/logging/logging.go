// Package logging makes one structured log of everything that runs in the process.
//
// umiak's packages log with slog. The loggers of libraries (klog of Kubernetes and flannel, logrus of containerd and
// kine, the standard log package of others) write to the same handler, each record with a field `component` derived
// from the package that wrote it. Records of libraries are lowered by one level: their error is umiak's warn, their
// info umiak's debug.
//
// Only cmd/ calls Setup, once. The package imports internal/lifecycle.
package logging

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

// Config holds the user's settings.
type Config struct {
	_      struct{} `topic:"Log"`
	Level  string   `key:"log-level" default:"info" values:"debug,info,warn,error" usage:"how much to log"`
	Format string   `key:"log-format" default:"text" values:"text,json" usage:"format of the log"`
	File   string   `key:"log" usage:"file to which the log is written as well, in pieces of 16 MiB (default: standard error only)"`
	// Verbosity is klog's: 0 is what Kubernetes' components log by default.
	Verbosity int      `key:"v" default:"0" usage:"verbosity of Kubernetes' components, up to 10; 4 and more include log-level debug"`
	Modules   []string `key:"vmodule" usage:"verbosity of single source files of Kubernetes, as PATTERN=NUMBER"`
}

// WithFlags returns the settings with the flags v and vmodule of Kubernetes' components in them.
func (c Config) WithFlags(level int, modules []string) Config {
	c.Verbosity = max(c.Verbosity, min(level, maxVerbosity))
	c.Modules = slices.Concat(c.Modules, modules)
	return c
}

// Validate returns an error that names the wrong key and its possible values.
func (c Config) Validate() error {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.Level)); err != nil {
		return fmt.Errorf("log-level: %q is not a level", c.Level)
	}
	if c.Format != "text" && c.Format != "json" {
		return fmt.Errorf("log-format: %q is not a format", c.Format)
	}
	var errs []error
	if c.File != "" && !filepath.IsAbs(c.File) {
		errs = append(errs, fmt.Errorf("log: %q is not an absolute path", c.File))
	}
	if c.Verbosity < 0 || c.Verbosity > maxVerbosity {
		errs = append(errs, fmt.Errorf("v: %d is not a verbosity, 0 to %d", c.Verbosity, maxVerbosity))
	}
	if _, err := parseModules(c.Modules); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Libraries controls the loggers of libraries. At level debug it does nothing.
type Libraries struct{ lib *library }

// Silence drops all further records of libraries: while a process stops, they log errors about each other's absence.
func (l *Libraries) Silence() {
	if l.lib.limits != nil {
		l.lib.min.Set(slog.LevelError + 1)
	}
}

// DatastoreFailing sets whether the datastore takes no writes. Meanwhile records of libraries that depend on it are
// dropped: the server logs that condition once.
func (l *Libraries) DatastoreFailing(failing bool) {
	if l.lib.limits != nil {
		l.lib.muffled.Store(failing)
	}
}

// muffled lists the components that depend on the datastore.
var muffled = map[string]bool{
	"kube-apiserver": true, "kube-controller-manager": true, "kube-scheduler": true, "kubernetes": true,
	"client-go": true,
	"etcd":      true, "grpc": true, "kine": true,
}

// expected reports whether a record describes intended behavior, or an error that is reported elsewhere: a webhook that
// denies a request works as intended, and the client gets the reason.
func expected(r slog.Record) bool {
	const refused = "denied the request"
	if strings.HasPrefix(r.Message, "rejected by webhook") || strings.Contains(r.Message, refused) {
		return true
	}
	// kine's server logs each failed request with its values. The API server reports the error.
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

// Setup returns umiak's logger, which writes to w, and connects the loggers of libraries to it. It is for main, since
// it sets global state of those libraries.
func Setup(c Config, w io.Writer) (own *slog.Logger, libraries *Libraries, err error) {
	if err := c.Validate(); err != nil {
		return nil, nil, err
	}
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // validated above
	if c.Verbosity >= debugVerbosity {
		level = min(level, slog.LevelDebug)
	}
	if c.File != "" {
		if w, err = alsoTo(w, c.File); err != nil {
			return nil, nil, err
		}
	}
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
	verbose, err := lib.verbosely(c)
	if err != nil {
		return nil, nil, err
	}
	klog.SetSlogLogger(slog.New(verbose))
	logrus.SetOutput(io.Discard)
	logrus.SetReportCaller(true)
	logrus.SetLevel(logrusLevel(lib.min.Level()))
	logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	logrus.AddHook(hook{lib})
	own = slog.New(&leveled{Handler: h, min: level})
	slog.SetDefault(own)
	// SetDefault made the package log write to own at level info; only libraries use that package.
	log.SetFlags(0)
	log.SetOutput(stdlog{lib})
	if c.Verbosity >= contentVerbosity {
		own.Warn("the log holds the contents of requests, Secrets among them; set v to 7 or less when it is not needed " +
			"any more")
	}
	return own, &Libraries{lib}, nil
}

// libraryLevel returns the lowest level of library records that are written if umiak's level is own.
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

// library is the handler of the loggers of libraries. It adds the component, lowers the level and applies the limits.
type library struct {
	slog.Handler
	min     *slog.LevelVar
	limits  *limits
	muffled *atomic.Bool
	modules []module // of klog only
}

func (h *library) Enabled(_ context.Context, l slog.Level) bool {
	return l >= h.min.Level() || l == slog.LevelInfo && inFatal() || enables(h.modules, l)
}
func (h *library) WithAttrs(a []slog.Attr) slog.Handler {
	out := *h
	out.Handler = h.Handler.WithAttrs(a)
	return &out
}
func (h *library) WithGroup(n string) slog.Handler {
	out := *h
	out.Handler = h.Handler.WithGroup(n)
	return &out
}

func (h *library) Handle(ctx context.Context, r slog.Record) error {
	if !h.Enabled(ctx, r.Level) {
		return nil // logr does not call Enabled for errors
	}
	final := inFatal()
	if r.Level == slog.LevelInfo && final {
		r.Level = slog.LevelError
	}
	var at runtime.Frame
	if r.PC != 0 {
		at, _ = runtime.CallersFrames([]uintptr{r.PC}).Next()
	}
	if r.Level < h.min.Level() && !matches(h.modules, at.File, r.Level) {
		return nil
	}
	name := component(at.Function)
	if r.Level >= slog.LevelError {
		exits.record(name, r, final)
	}
	if h.muffled.Load() && muffled[name] || h.limits != nil && expected(r) {
		return nil
	}
	pass, skipped := h.limits.pass(r)
	if !pass {
		return nil
	}
	if skipped > 0 {
		r.AddAttrs(slog.Int("skipped-before", skipped))
	}
	// A library often repeats what failed, so its error is a warning here. umiak logs its own failures.
	r.Level = max(r.Level-(slog.LevelError-slog.LevelWarn), slog.LevelDebug)
	r.Message = shorten(strings.TrimSpace(r.Message))
	r.AddAttrs(slog.String("component", name))
	return h.Handler.Handle(ctx, r)
}

// maxMessage is the length in bytes to which a library's message is cut: kine, for one, logs whole transactions.
const maxMessage = 1000

// shorten cuts a message to maxMessage.
func shorten(s string) string {
	if len(s) > maxMessage {
		return strings.ToValidUTF8(s[:maxMessage], "") + fmt.Sprintf("… (%d bytes in all)", len(s))
	}
	return s
}

// hook is a logrus.Hook that passes records to the library handler.
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

// stdlog is the writer of the standard log package.
type stdlog struct{ h *library }

func (s stdlog) Write(p []byte) (int, error) {
	if s.h.Enabled(context.Background(), slog.LevelInfo) {
		slog.New(s.h).Info(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// component returns the component of a function from its package path; the longest prefix wins.
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
