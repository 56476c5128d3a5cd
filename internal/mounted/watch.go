package mounted

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Changes is a watch of the mounts in this mount namespace.
type Changes struct {
	// C yields a value when the watch begins, and after any mount or unmount. Values that are not read merge into one.
	C <-chan struct{}
	// Ended yields the error with which the watch ended, nil if its context has ended, and is then closed.
	Ended <-chan error
}

// Watch watches the mounts until ctx ends.
func Watch(ctx context.Context) Changes {
	changed, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		defer close(ended)
		ended <- watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	return Changes{C: changed, Ended: ended}
}

// watch calls changed when it begins, and after any mount or unmount, until ctx ends.
func watch(ctx context.Context, changed func()) error {
	// The kernel reports a change once per open file (proc_pid_mounts(5)), so the runtime's poller must not see it
	// first.
	table, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("watch mounts: %w", err)
	}
	defer unix.Close(table) //nolint:errcheck // only polled
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch mounts: %w", err)
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // into an empty counter
		close(ended)
	})
	defer func() {
		if !stop() {
			<-ended // the function uses the descriptor
		}
		_ = unix.Close(wake)
	}()
	fds := []unix.PollFd{{Fd: int32(table), Events: unix.POLLPRI}, {Fd: int32(wake), Events: unix.POLLIN}}
	for changed(); ; {
		_, err := unix.Poll(fds, -1)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("watch mounts: %w", err)
		case err == nil && fds[0].Revents != 0:
			changed()
		}
	}
}
