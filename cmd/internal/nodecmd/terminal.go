package nodecmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	ucli "github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/termtext"
)

// exitInterrupted is the exit code of a command that a signal has ended: what shells have for SIGINT.
const exitInterrupted = 128 + int(unix.SIGINT)

// progressDelay is how long a command runs before a terminal shows that it does, and between two updates.
const progressDelay = time.Second

// screen is the output of a command: its two streams, and on a terminal a last line that shows that the command runs.
type screen struct {
	stdout, stderr io.Writer
	terminal       bool // stderr is a terminal

	mu   sync.Mutex
	line int   // length of the line shown, 0 for none
	err  error // of the first write to stdout that failed
}

// newScreen takes the place of the streams of a program.
func newScreen(app *ucli.App) *screen {
	s := &screen{stdout: app.Writer, stderr: app.ErrWriter}
	_, s.terminal = app.ErrWriter.(*termtext.Writer)
	app.Writer, app.ErrWriter = stream{s, s.stdout}, stream{s, s.stderr}
	return s
}

// failed returns the error of the first write to standard output that failed, as on a full disk.
func (s *screen) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		return nil
	}
	return fmt.Errorf("write the output: %w", s.err)
}

// stream is one of the streams of a screen. A write removes the line first.
type stream struct {
	screen *screen
	to     io.Writer
}

// Write implements io.Writer.
func (w stream) Write(p []byte) (int, error) {
	w.screen.mu.Lock()
	defer w.screen.mu.Unlock()
	w.screen.clear()
	n, err := w.to.Write(p)
	if err != nil && w.to == w.screen.stdout && w.screen.err == nil {
		w.screen.err = err
	}
	return n, err
}

// clear removes the line. mu is held.
func (s *screen) clear() {
	if s.line > 0 {
		fmt.Fprintf(s.stderr, "\r%s\r", strings.Repeat(" ", s.line))
		s.line = 0
	}
}

// show replaces the line.
func (s *screen) show(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprint(s.stderr, text)
	s.line = len(text)
}

// progress shows on a terminal that a command runs, from a second after its begin until end is called.
func (s *screen) progress(name string) (end func()) {
	if !s.terminal {
		return func() {}
	}
	begun, stop, stopped := time.Now(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(progressDelay)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				s.show(fmt.Sprintf("%s: running for %s, Ctrl-C ends it", name, time.Since(begun).Round(time.Second)))
			}
		}
	}()
	return func() {
		close(stop)
		<-stopped
		s.mu.Lock()
		defer s.mu.Unlock()
		s.clear()
	}
}

// ownSignals are the commands that handle signals themselves: those that run a node, and upstream's command lines.
var ownSignals = map[string]bool{"server": true, "agent": true, "kubectl": true, "crictl": true, "ctr": true}

// unfinished is the error of a command that an interruption leaves half done.
type unfinished struct {
	error
	stands string
}

// Unwrap returns the error without what stands.
func (u unfinished) Unwrap() error { return u.error }

// ifInterrupted adds to the error of a command what its user finds after an interruption, and what to do then.
func ifInterrupted(err error, stands string) error {
	if err == nil {
		return nil
	}
	return unfinished{err, stands}
}

// interruptible makes a command end its context, and with it what it has begun, at the first SIGINT, SIGTERM or
// SIGHUP. A second one ends the process at once. On a terminal it shows progress.
func interruptible(s *screen, run ucli.ActionFunc) ucli.ActionFunc {
	return func(c *ucli.Context) error {
		signals := []os.Signal{unix.SIGINT, unix.SIGTERM}
		if !signal.Ignored(unix.SIGHUP) { // nohup(1)
			signals = append(signals, unix.SIGHUP)
		}
		ctx, stop := signal.NotifyContext(c.Context, signals...)
		defer stop()
		context.AfterFunc(ctx, stop)
		before := c.Context
		c.Context = ctx
		end := s.progress(helpName(c))
		err := run(c)
		end()
		if err != nil && ctx.Err() != nil && before.Err() == nil && errors.Is(err, context.Canceled) {
			text := helpName(c) + " was interrupted"
			if half := (unfinished{}); errors.As(err, &half) {
				text += "; " + half.stands
			}
			return ucli.Exit(text, exitInterrupted)
		}
		return err
	}
}

// interrupt makes a command and those below it interruptible, except those that deal with signals themselves.
func (s *screen) interrupt(cmd *ucli.Command) {
	if cmd.Action != nil && !ownSignals[cmd.Name] {
		cmd.Action = interruptible(s, cmd.Action)
	}
	for _, sub := range cmd.Subcommands {
		s.interrupt(sub)
	}
}
