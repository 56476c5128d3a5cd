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

// Exits turns the wish of a library to end the process (klog.Fatal, logrus.Fatal, a panic in a goroutine of
// Kubernetes) into an error of a part. The goroutine that wished it ends. What it cannot catch is listed in
// docs/architecture.md.
type Exits struct {
	c     chan error
	last  atomic.Pointer[fatal]
	final atomic.Pointer[fatal] // of klog.Fatal and its like, which end the process next
	take  atomic.Pointer[func(component string, reason error) bool]
}

// fatal is the last error that a library has logged: it stands before a wish to end the process.
type fatal struct {
	component, message string
	at                 time.Time
}

// klog, logrus and Kubernetes' panic handlers are one per process, and so is what they report to.
var (
	exits     = &Exits{c: make(chan error, 1)}
	catchOnce sync.Once
)

// CatchExits makes the libraries report to the returned Exits, from the first call on, for the whole process.
func CatchExits() *Exits {
	catchOnce.Do(func() {
		klog.OsExit = exits.exit
		logrus.StandardLogger().ExitFunc = exits.exit
		utilruntime.PanicHandlers = append(utilruntime.PanicHandlers, func(_ context.Context, r any) { exits.panicked(r) })
	})
	return exits
}

// Run fails when a library has wished to end the process.
func (e *Exits) Run(ctx context.Context, ready func()) error {
	ready()
	select {
	case err := <-e.c:
		return err
	case <-ctx.Done():
		return nil
	}
}

// note keeps what a library has logged as an error; final is for the last words of one that ends the process.
func (e *Exits) note(component string, r slog.Record, final bool) {
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

// exit stands in for os.Exit.
func (e *Exits) exit(code int) {
	component, _ := origin()
	reason := fmt.Sprintf("it ended with status %d", code)
	// Others may have logged an error since, as on a machine where all that waits gives up at once.
	if l := e.final.Swap(nil); l != nil {
		reason = l.message
	} else if l := e.last.Load(); l != nil && (l.component == component || time.Since(l.at) < time.Second) {
		reason = l.message
	}
	e.wish(component, errors.New(reason))
	runtime.Goexit()
}

// panicked is called for a panic that Kubernetes' code has recovered from, to go on with it when it returns. That is left
// so for one of a single request: the server that serves it breaks off the answer, which must not look complete.
func (e *Exits) panicked(r any) {
	component, request := origin()
	if request || r == http.ErrAbortHandler {
		return
	}
	e.wish(component, fmt.Errorf("panic: %v", r))
	runtime.Goexit()
}

// Take has f decide first: where it returns true, it deals with the wish, and nothing ends. It must not block.
func (e *Exits) Take(f func(component string, reason error) bool) { e.take.Store(&f) }

func (e *Exits) wish(component string, reason error) {
	if f := e.take.Load(); f != nil && (*f)(component, reason) {
		return
	}
	if node[component] || component == "kube-controller-manager" {
		reason = &lifecycle.Anew{Part: component, Err: reason}
	}
	select {
	case e.c <- fmt.Errorf("%s: %w", component, reason):
	default:
	}
}

// inFatal says whether the caller is klog.Fatal or one like it: klog hands their messages on as if they were information.
func inFatal() bool {
	var pc [16]uintptr
	frames := runtime.CallersFrames(pc[:runtime.Callers(3, pc[:])])
	for {
		f, more := frames.Next()
		name, ours := strings.CutPrefix(f.Function, "k8s.io/klog/v2.")
		switch {
		case ours && (strings.HasPrefix(name, "Fatal") || strings.HasPrefix(name, "Exit") || strings.HasPrefix(name, "Verbose.Fatal")):
			return true
		case !ours && !strings.HasPrefix(f.Function, "github.com/go-logr/logr.") && !strings.HasPrefix(f.Function, "log/slog.") && !strings.Contains(f.Function, "/internal/logging."):
			return false
		}
		if !more {
			return false
		}
	}
}

// node are the components that belong to a node: they take nothing else down.
var node = map[string]bool{"kubelet": true, "containerd": true, "proxy": true, "coredns": true, "flannel": true, "network": true, "agent": true}

// origin finds out from the stack which component the caller's goroutine belongs to, and whether it serves a request.
func origin() (name string, request bool) {
	pc := make([]uintptr, 64)
	frames := runtime.CallersFrames(pc[:runtime.Callers(3, pc)])
	name = "library"
	for {
		f, more := frames.Next()
		if c := component(f.Function); (name == "library" || name == "kubernetes" || name == "client-go") && c != "library" {
			name = c
		}
		if strings.HasPrefix(f.Function, "net/http.") || strings.HasPrefix(f.Function, "golang.org/x/net/http2.") {
			request = request || strings.Contains(f.Function, "conn)") || strings.Contains(f.Function, "serverConn)") || strings.Contains(f.Function, "timeoutHandler)")
		}
		if !more {
			return name, request
		}
	}
}
