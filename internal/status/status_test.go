package status_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/socket"
	"github.com/umiak-io/umiak/internal/status"
)

func TestReportTravelsOverAPrivateSocket(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s.sock")
	if _, err := status.Get(t.Context(), sock); !errors.Is(err, socket.ErrNotRunning) {
		t.Fatalf("got %v", err)
	}
	s := &status.Server{Socket: sock, Version: "v1", Ready: func() bool { return true }, Sources: []status.Source{
		func(context.Context) status.Section {
			return status.Section{Name: "Components", Rows: []status.Row{{Name: "datastore", State: "ready",
				Detail: "sqlite"}}}
		},
	}}
	ctx, cancel := context.WithCancel(t.Context())
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(up) }) }()
	<-up
	st, err := os.Stat(sock)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", st, err)
	}
	rep, err := status.Get(t.Context(), sock)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := rep.Print(&b); err != nil || !strings.Contains(b.String(), "datastore  ready  sqlite") ||
		!strings.HasPrefix(b.String(), "umiak v1  ready") {
		t.Fatalf("%v\n%s", err, b.String())
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestUnhealthy checks that the first line shows a part that is ready but unhealthy.
func TestUnhealthy(t *testing.T) {
	rep := status.Report{Version: "v1", Ready: true, Sections: []status.Section{
		{Name: "Parts", Rows: []status.Row{{Name: "datastore", State: "ready"}}},
		{Name: "Components", Rows: []status.Row{{Name: "datastore", State: status.Unhealthy}}},
	}}
	var b bytes.Buffer
	if err := rep.Print(&b); err != nil || rep.Healthy() || !strings.HasPrefix(b.String(), "umiak v1  unhealthy  ") {
		t.Fatalf("%v, healthy %v\n%s", err, rep.Healthy(), b.String())
	}
	rep.Sections[1].Rows[0].State = "healthy"
	if !rep.Healthy() {
		t.Fatal("not healthy")
	}
}
