package nodecmd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	ucli "github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/termtext"
)

// program is a program with one command.
func program(stdout, stderr io.Writer, action ucli.ActionFunc) *ucli.App {
	return &ucli.App{Name: "umiak", Writer: stdout, ErrWriter: stderr, ExitErrHandler: func(*ucli.Context, error) {},
		Commands: []*ucli.Command{{Name: "wait", Usage: "wait", Action: action}}}
}

// full is a disk without room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, unix.ENOSPC }

func TestOutputThatCannotBeWrittenIsAnError(t *testing.T) {
	for _, line := range [][]string{{"--help"}, {"help"}, {"wait", "--help"}, {"version"}, {"wait"}} {
		var stderr bytes.Buffer
		app := program(full{}, &stderr, func(c *ucli.Context) error { fmt.Fprintln(c.App.Writer, "done"); return nil })
		code := Run(t.Context(), app, append([]string{"umiak"}, line...), &stderr)
		if code != 1 || stderr.String() != "umiak: write the output: no space left on device\n" {
			t.Errorf("%v: %d %q", line, code, stderr.String())
		}
	}
}

func TestInterruptEndsACommandsContext(t *testing.T) {
	for name, c := range map[string]struct {
		signal unix.Signal
		action ucli.ActionFunc
		code   int
		want   string
	}{
		"SIGINT": {unix.SIGINT, func(c *ucli.Context) error { <-c.Done(); return fmt.Errorf("ask: %w", c.Err()) },
			exitInterrupted, "umiak: umiak wait was interrupted\n"},
		"SIGTERM": {unix.SIGTERM, func(c *ucli.Context) error { <-c.Done(); return c.Err() }, exitInterrupted,
			"umiak: umiak wait was interrupted\n"},
		"half done": {unix.SIGINT, func(c *ucli.Context) error {
			<-c.Done()
			return ifInterrupted(fmt.Errorf("clean up: %w", context.Cause(c.Context)), "run it again")
		}, exitInterrupted, "umiak: umiak wait was interrupted; run it again\n"},
		"half done for another reason": {unix.SIGINT, func(c *ucli.Context) error {
			<-c.Done()
			return ifInterrupted(fmt.Errorf("clean up: %w", unix.EIO), "run it again")
		}, 1, "umiak: clean up: input/output error\n"},
		"done": {unix.SIGINT, func(c *ucli.Context) error { <-c.Done(); return nil }, 0, ""},
		"failed": {unix.SIGINT, func(c *ucli.Context) error {
			<-c.Done()
			return fmt.Errorf("remove file: %w",
				unix.EIO)
		}, 1, "umiak: remove file: input/output error\n"},
	} {
		var stdout, stderr bytes.Buffer
		app := program(&stdout, &stderr, func(ctx *ucli.Context) error {
			if err := unix.Kill(unix.Getpid(), c.signal); err != nil {
				t.Error(err)
			}
			return c.action(ctx)
		})
		if code := Run(t.Context(), app, []string{"umiak", "wait"}, &stderr); code != c.code ||
			stderr.String() != c.want {
			t.Errorf("%s: %d %q", name, code, stderr.String())
		}
	}
}

// lockedBuffer is a buffer that a test waits on.
type lockedBuffer struct {
	mu      sync.Mutex
	b       bytes.Buffer
	written chan struct{}
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.written <- struct{}{}:
	default:
	}
	return l.b.Write(p)
}

func TestATerminalShowsThatACommandRuns(t *testing.T) {
	buffer := &lockedBuffer{written: make(chan struct{}, 1)}
	var stdout bytes.Buffer
	app := program(&stdout, termtext.NewWriter(buffer), func(c *ucli.Context) error {
		select {
		case <-buffer.written:
		case <-c.Done():
		}
		fmt.Fprintln(c.App.Writer, "done")
		return nil
	})
	if code := Run(t.Context(), app, []string{"umiak", "wait"}, buffer); code != 0 {
		t.Error(code)
	}
	shown, rest, _ := strings.Cut(buffer.b.String(), "\r")
	if !strings.HasPrefix(shown, "umiak wait: running for ") || strings.Trim(rest, " \r") != "" ||
		stdout.String() != "done\n" {
		t.Errorf("%q %q", buffer.b.String(), stdout.String())
	}
}

func TestAPipeShowsNoProgress(t *testing.T) {
	var stderr bytes.Buffer
	s := newScreen(program(io.Discard, &stderr, nil))
	s.progress("umiak wait")()
	if s.terminal || stderr.Len() > 0 {
		t.Errorf("%t %q", s.terminal, stderr.String())
	}
}
