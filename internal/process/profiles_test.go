package process

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/socket"
)

// TestProfiles: the command in the log works, for root only.
func TestProfiles(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	path := filepath.Join(t.TempDir(), "p.sock")
	var text bytes.Buffer
	up, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- profiles{path, slog.New(slog.NewTextHandler(&text, nil))}.run(ctx, func() { close(up) })
	}()
	<-up
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if !strings.Contains(text.String(), "--unix-socket "+path+" http://umiak/debug/pprof/heap") {
		t.Error(text.String())
	}
	client := socket.Client(path)
	defer client.CloseIdleConnections()
	for _, name := range []string{"heap", "goroutine", "cmdline"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://umiak/debug/pprof/"+name, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if _ = resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK || len(body) == 0 {
			t.Errorf("%s: %s, %d bytes, %v", name, resp.Status, len(body), err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
