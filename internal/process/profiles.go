package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/umiak-io/umiak/internal/socket"
)

// profiles serves profiles of this process at a socket, as net/http/pprof does. No port is opened.
type profiles struct {
	socket string
	log    *slog.Logger
}

// run serves until ctx ends.
func (p profiles) run(ctx context.Context, ready func()) error {
	l, err := socket.Listen(ctx, p.socket)
	if err != nil {
		return fmt.Errorf("listen for profiles: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	p.log.Info("profiles of this process are served to root (enable-pprof)", "command",
		"curl --unix-socket "+p.socket+" http://umiak/debug/pprof/heap >heap.pprof && go tool pprof heap.pprof")
	ready()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve profiles: %w", err)
	}
	return nil
}
