package process

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// untilSignal returns a context that ends at the first SIGTERM or SIGINT; a second one ends the process at once, for
// people who do not wait. Containers are not touched by either. After the returned function has been called, a signal
// ends the process, and whether one came before is known: it is the context's cause.
func (p Process) untilSignal(ctx context.Context, systemd func(state string)) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, unix.SIGTERM, unix.SIGINT)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s, came := <-ch
		if !came {
			return
		}
		p.Log.Info("stopping; containers keep running", "signal", s.String())
		systemd(daemon.SdNotifyStopping)
		p.Silence()
		cancel(fmt.Errorf("signal: %s", s))
		signal.Stop(ch) // the next one has its default effect
	}()
	return ctx, sync.OnceFunc(func() {
		signal.Stop(ch) // returns when each signal until then is in ch
		close(ch)
		<-done
	})
}

// takeNotifySocket returns a function that reports a state to systemd, if systemd has started this process. It removes
// the variables from the environment, since the kubelet would report READY=1 through them when only it is ready.
func takeNotifySocket() func(state string) {
	socket := os.Getenv("NOTIFY_SOCKET")
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		_ = os.Unsetenv(name) // fails only for a malformed name
	}
	return func(state string) {
		if socket == "" {
			return
		}
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
		if err != nil {
			return // systemd notices by its time limit
		}
		defer conn.Close() //nolint:errcheck // a datagram has been sent or not
		_, _ = conn.Write([]byte(state))
	}
}
