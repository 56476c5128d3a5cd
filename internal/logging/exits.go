package logging

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/klog/v2"

	"github.com/umiak-io/umiak/internal/lifecycle"
)

// Exits turns attempts of libraries to end the process (klog.Fatal, logrus.Fatal, a panic in a goroutine of Kubernetes)
// into an error of its Run. The goroutine that made the attempt ends. docs/architecture.md lists what it cannot catch.
type Exits struct {
	c      chan error
	last   atomic.Pointer[fatal]
	final  atomic.Pointer[fatal] // logged by klog.Fatal and the like, which end the process next
	handle atomic.Pointer[func(component string, reason error) bool]
}

// fatal is an error that a library has logged. The last one before an attempt to end the process is usually its reason.
type fatal struct {
	component, message string
	at                 time.Time
}

// klog, logrus and the panic handlers of Kubernetes are global, and so is the Exits to which they report.
var (
	exits     = &Exits{c: make(chan error, 1)}
	catchOnce sync.Once
)

// CatchExits returns the Exits of the process. From the first call on, the libraries report to it.
func CatchExits() *Exits {
	catchOnce.Do(func() {
		klog.OsExit = exits.exit
		logrus.StandardLogger().ExitFunc = exits.exit
		utilruntime.PanicHandlers = append(utilruntime.PanicHandlers, func(_ context.Context, r any) {
			exits.panicked(r)
		})
	})
	return exits
}

// Run returns an error when a library tries to end the process, nil when ctx ends.
func (e *Exits) Run(ctx context.Context, ready func()) error {
	ready()
	select {
	case err := <-e.c:
		return err
	case <-ctx.Done():
		return nil
	}
}

// record stores an error that a library has logged. final means that it ends the process next.
func (e *Exits) record(component string, r slog.Record, final bool) {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "err" || a.Key == "error" {
			text += ": " + a.Value.String()
		}
		return true
	})
	l := &fatal{component, shorten(strings.TrimSpace(text)), time.Now()}
	e.last.Store(l)
	if final {
		e.final.Store(l)
	}
}

// exit replaces os.Exit.
func (e *Exits) exit(code int) {
	component, _ := origin()
	reason := fmt.Sprintf("it ended with status %d", code)
	// Other components may have logged an error since, as on a machine where many give up at the same time.
	if l := e.final.Swap(nil); l != nil {
		reason = l.message
	} else if l := e.last.Load(); l != nil && (l.component == component || time.Since(l.at) < time.Second) {
		reason = l.message
	}
	e.report(component, errors.New(reason))
	runtime.Goexit()
}

// panicked is called for a panic that Kubernetes' code has recovered and repeats when panicked returns. The panic of a
// request is left to that: the HTTP server then aborts the answer, which must not look complete.
func (e *Exits) panicked(r any) {
	component, request := origin()
	if request || r == http.ErrAbortHandler {
		return
	}
	e.report(component, fmt.Errorf("panic: %v", r))
	runtime.Goexit()
}

// Handle sets a function that is called first. If it returns true, it has handled the attempt, and Run does not end.
// It must not block.
func (e *Exits) Handle(f func(component string, reason error) bool) { e.handle.Store(&f) }

// report makes Run return the reason why a component tried to end the process.
func (e *Exits) report(component string, reason error) {
	if f := e.handle.Load(); f != nil && (*f)(component, reason) {
		return
	}
	if node[component] || component == "kube-controller-manager" {
		reason = &lifecycle.ReexecError{Part: component, Err: reason}
	}
	select {
	case e.c <- fmt.Errorf("%s: %w", component, reason):
	default:
	}
}

// inFatal reports whether the caller is klog.Fatal or the like, whose messages klog passes on at level info.
func inFatal() bool {
	var pc [16]uintptr
	frames := runtime.CallersFrames(pc[:runtime.Callers(3, pc[:])])
	for {
		f, more := frames.Next()
		name, ours := strings.CutPrefix(f.Function, "k8s.io/klog/v2.")
		switch {
		case ours && (strings.HasPrefix(name, "Fatal") || strings.HasPrefix(name, "Exit") ||
			strings.HasPrefix(name, "Verbose.Fatal")):
			return true
		case !ours && !strings.HasPrefix(f.Function, "github.com/go-logr/logr.") &&
			!strings.HasPrefix(f.Function, "log/slog.") && !strings.Contains(f.Function, "/internal/logging."):
			return false
		}
		if !more {
			return false
		}
	}
}

// node lists the components of a node, whose failure must not end the others.
var node = map[string]bool{"kubelet": true, "containerd": true, "proxy": true, "coredns": true, "flannel": true,
	"network": true, "agent": true}

// origin returns, from the stack, the component to which the goroutine belongs, and whether it serves a request.
func origin() (name string, request bool) {
	pc := make([]uintptr, 64)
	frames := runtime.CallersFrames(pc[:runtime.Callers(3, pc)])
	name = "library"
	for {
		f, more := frames.Next()
		if c := component(f.Function); (name == "library" || name == "kubernetes" || name == "client-go") &&
			c != "library" {
			name = c
		}
		if strings.HasPrefix(f.Function, "net/http.") || strings.HasPrefix(f.Function, "golang.org/x/net/http2.") {
			request = request || strings.Contains(f.Function, "conn)") || strings.Contains(f.Function, "serverConn)") ||
				strings.Contains(f.Function, "timeoutHandler)")
		}
		if !more {
			return name, request
		}
	}
}
