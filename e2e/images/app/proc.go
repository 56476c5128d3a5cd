package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// hog takes memory and touches every page of it.
func hog(ctx context.Context, args []string, out io.Writer) error {
	mib, err := strconv.Atoi(strings.Join(args, ""))
	if err != nil {
		return err
	}
	var held [][]byte
	for i := range mib {
		b := make([]byte, 1<<20)
		for j := 0; j < len(b); j += 4096 {
			b[j] = byte(i)
		}
		held = append(held, b)
	}
	_, _ = fmt.Fprintln(out, "holding", len(held), "MiB")
	<-ctx.Done()
	return nil
}

func signals(_ context.Context, args []string, out io.Writer) error {
	ch := make(chan os.Signal, 10)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGQUIT)
	_, _ = fmt.Fprintln(out, "waiting for signals")
	for s := range ch {
		_, _ = fmt.Fprintln(out, "got", s)
		if s == syscall.SIGTERM {
			if len(args) > 0 {
				return os.WriteFile(args[0], []byte(s.String()), 0o644)
			}
			return nil
		}
	}
	return nil
}

func slow(_ context.Context, args []string, out io.Writer) error {
	s, err := strconv.Atoi(strings.Join(args, ""))
	if err != nil {
		return errors.New("slow takes seconds")
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGTERM)
	_, _ = fmt.Fprintln(out, "running")
	<-ch
	_, _ = fmt.Fprintln(out, "stopping")
	time.Sleep(time.Duration(s) * time.Second)
	_, _ = fmt.Fprintln(out, "stopped")
	return nil
}

// sum stands in for tar at the far end of kubectl cp.
func sum(_ context.Context, _ []string, out io.Writer) error {
	h := sha256.New()
	if _, err := io.Copy(h, os.Stdin); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "%x\n", h.Sum(nil))
	return nil
}
