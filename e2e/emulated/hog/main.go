// Command hog takes all inotify instances that its user may have and keeps them until SIGTERM. scripts/emulate runs
// it in its machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "hog:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	limit := unix.Rlimit{Cur: 1 << 16, Max: 1 << 16}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise the number of open files: %w", err)
	}
	n := 0
	for ; ; n++ {
		_, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if errors.Is(err, unix.EMFILE) {
			break
		}
		if err != nil {
			return fmt.Errorf("make inotify instance: %w", err)
		}
	}
	fmt.Printf("%d inotify instances are taken\n", n)
	<-ctx.Done()
	return nil
}
