package logging

import (
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/klog/v2"

	"github.com/umiak-io/umiak/internal/lifecycle"
)

type writer func(line string)

func (w writer) Write(b []byte) (int, error) { w(string(b)); return len(b), nil }

// TestNobodyEndsTheProcess checks that an attempt of a library to end the process becomes an error with the reason, and
// that its goroutine ends.
func TestNobodyEndsTheProcess(t *testing.T) {
	e := CatchExits()
	if _, _, err := Setup(Config{Level: "info", Format: "text"}, writer(func(line string) {
		if strings.Contains(line, "no CSINode") { // another component logs an error before the process ends
			e.record(e.last.Load().component, slog.NewRecord(time.Now(), slog.LevelError, "another", 0), false)
		}
	})); err != nil {
		t.Fatal(err)
	}
	wished := func(f func()) error {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		go f()
		return e.Run(ctx, func() {})
	}
	for name, c := range map[string]struct {
		f    func()
		want string
	}{
		"klog": {func() { klog.Fatalf("no CSINode after %d tries", 6); t.Error("it went on") },
			"no CSINode after 6 tries"},
		"exit": {func() { klog.ErrorS(errors.New("full"), "cannot write"); klog.FlushAndExit(time.Second, 1) },
			"cannot write: full"},
		"logrus": {func() { logrus.Fatal("transaction failed"); t.Error("it went on") }, "transaction failed"},
		"panic": {func() { defer utilruntime.HandleCrash(); panic("index out of range") },
			"panic: index out of range"},
	} {
		if err := wished(c.f); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The panic of a request is left to the HTTP server.
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		defer utilruntime.HandleCrash()
		panic("one request")
	}))
	defer srv.Close()
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	if resp, err := http.Get(srv.URL); err == nil {
		t.Errorf("an answer that was broken off looks complete: %s", resp.Status)
		_ = resp.Body.Close()
	}
	select {
	case err := <-e.c:
		t.Error(err)
	default:
	}
	// A component of the node makes the process execute itself again, others end it.
	e.report("kubelet", errors.New("x"))
	var anew *lifecycle.ReexecError
	if err := <-e.c; !errors.As(err, &anew) || anew.Part != "kubelet" {
		t.Error(err)
	}
	e.Handle(func(component string, reason error) bool {
		return component == "kubelet" && reason.Error() == "no CSINode"
	})
	e.report("kubelet", errors.New("no CSINode"))
	e.report("kube-apiserver", errors.New("x"))
	if err := <-e.c; errors.As(err, &anew) {
		t.Error(err)
	}
}
