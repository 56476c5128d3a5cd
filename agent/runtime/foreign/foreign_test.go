package foreign

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// other is a container runtime that only tells its name.
type other struct {
	cri.UnimplementedRuntimeServiceServer
}

func (other) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "cri-o", RuntimeVersion: "1.37.0"}, nil
}

// serve runs it at a socket until the returned function is called.
func serve(t *testing.T, socket string) (stop func()) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(s, other{})
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return s.Stop
}

// TestARuntimeThatComesAndGoes: the node waits for it, and its part fails when it is gone.
func TestARuntimeThatComesAndGoes(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	if _, err := Ask(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "correct container-runtime-endpoint") {
		t.Error(err)
	}
	r := New(socket, slog.New(slog.DiscardHandler))
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- r.Run(t.Context(), func() { close(ready) }) }()
	if rows := r.Rows(); rows[0].State != "does not answer" {
		t.Error(rows)
	}
	stop := serve(t, socket)
	<-ready
	if rows := r.Rows(); rows[0].State != "cri-o 1.37.0" || !strings.HasPrefix(rows[0].Detail, socket) {
		t.Error(rows)
	}
	if name, err := Ask(t.Context(), socket); err != nil || name != "cri-o 1.37.0" {
		t.Error(name, err)
	}
	stop()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "is gone") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- r.Run(ctx, func() {}) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSocket(t *testing.T) {
	for endpoint, want := range map[string]string{"/run/a.sock": "/run/a.sock", "unix:///run/a.sock": "/run/a.sock",
		"run/a.sock": "", "tcp://127.0.0.1:1": "", "unix://a": ""} {
		if got, err := Socket(endpoint); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", endpoint, got, err)
		}
	}
}
