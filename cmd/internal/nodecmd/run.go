package nodecmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	ucli "github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/agent/apibalancer"
	"github.com/umiak-io/umiak/agent/join"
	"github.com/umiak-io/umiak/agent/upgrade"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/datadisk"
	"github.com/umiak-io/umiak/internal/gctuning"
	"github.com/umiak-io/umiak/internal/httpproxy"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/joinclient"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/internal/version"
)

// What the agent asks of a joiner beyond agent.Joiner.
var (
	_ agent.Backend = (*join.Joiner)(nil)
	_ agent.Earlier = (*join.Joiner)(nil)
	_ agent.Servers = (*join.Joiner)(nil)
)

// Agent is the command that runs a node: `umiak agent`, and what `umiak-agent` does by default.
func Agent() *ucli.Command {
	var cfg agent.Config
	var lc logging.Config
	return &ucli.Command{
		Name:  "agent",
		Usage: "run a node that joins a cluster",
		Description: "Runs containerd, kubelet, network, service proxy and DNS in this process.\n\n" +
			"  umiak-agent --server https://10.0.0.1:6443 --token TOKEN",
		Flags: config.Flags(&cfg, &lc),
		Action: func(c *ucli.Context) error {
			if err := NoArgs(c); err != nil {
				return err
			}
			if err := errors.Join(config.Load(c, &cfg, &lc), cfg.ValidateValues(), lc.Validate()); err != nil {
				return BadConfig(err)
			}
			return runAgent(c, cfg, lc)
		},
	}
}

// WarnSettings logs what is odd about the settings and is no reason to refuse them: files with secrets that others than root can read,
// and what looks like a setting and does nothing.
func WarnSettings(c *ucli.Context, log *slog.Logger, settings ...any) {
	for _, why := range slices.Concat(config.Exposed(c, settings...), remarks(c, settings)) {
		log.Warn(why)
	}
}

// remarks names what looks like a setting of the structs and does nothing.
func remarks(c *ucli.Context, settings []any) []string {
	out := config.Remarks(c, settings...)
	for _, s := range settings {
		if cfg, ok := s.(*agent.Config); ok {
			out = append(out, cfg.PassedOver()...)
		}
	}
	return out
}

// runAgent runs a node whose server is another machine.
func runAgent(c *ucli.Context, cfg agent.Config, lc logging.Config) error {
	server, tok, err := whomToJoin(cfg)
	if err != nil {
		return BadConfig(err)
	}
	log, quiet, err := logging.Setup(lc, c.App.ErrWriter)
	if err != nil {
		return err
	}
	WarnSettings(c, log, &cfg, &lc)
	if err := httpproxy.Exempt(); err != nil {
		return err
	}
	dirs := cfg.Dirs()
	release, err := Own(dirs, log)
	if err != nil {
		return err
	}
	defer release()
	if err := os.MkdirAll(dirs.Agent(), 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	local := net.JoinHostPort("127.0.0.1", cfg.BalancerPort.String())
	servers, err := apibalancer.New(apibalancer.Config{Listen: local, File: dirs.Servers(), Given: server, Log: log})
	if err != nil {
		return err
	}
	member, err := join.New(join.Config{Dirs: dirs, Server: server, Token: tok, Local: local, Balancer: servers, Log: log})
	if err != nil {
		return err
	}
	node, err := agent.New(cfg, member, log)
	if err != nil {
		return err
	}
	p := Process{Dirs: dirs, Log: log, Hush: quiet.Hush, Forgive: node.Forgive, Sources: append([]status.Source{member.Section, servers.Section}, node.Sources()...)}
	p.Parts = append(p.Parts, node.Restart(lifecycle.Part{Name: "servers", Run: servers.Run}))
	p.Parts = append(p.Parts, node.Parts("servers")...)
	p.Parts = append(p.Parts, node.Restart(lifecycle.Part{Name: "membership", After: []string{"join"}, Run: member.Run}))
	return p.Run(c.Context)
}

// whomToJoin reads the settings that only a node without a server of its own needs.
func whomToJoin(cfg agent.Config) (server string, tok token.Token, err error) {
	var errs []error
	if cfg.Server == "" {
		errs = append(errs, errors.New("server: not set; it is the URL of a server to join, as https://10.0.0.1:6443"))
	} else if server, err = joinclient.Address(cfg.Server); err != nil {
		errs = append(errs, fmt.Errorf("server: %w", err))
	}
	// Without a token a node can start that has joined before.
	switch text, err := token.FromSettings(cfg.Token, cfg.TokenFile); {
	case err != nil:
		errs = append(errs, fmt.Errorf("token-file: %w", err))
	case text == "" && cfg.TokenFile != "":
		errs = append(errs, fmt.Errorf("token-file: %s is empty", cfg.TokenFile))
	case text != "":
		if tok, err = token.Parse(text); err != nil {
			errs = append(errs, fmt.Errorf("token: this is not a token: %w", err))
		}
	}
	return server, tok, errors.Join(errs...)
}

// Process runs parts as the process: lock, signals, systemd notification, status socket.
type Process struct {
	Dirs    layout.Dirs
	Log     *slog.Logger
	Hush    func() // silences the libraries' loggers
	Parts   []lifecycle.Part
	Sources []status.Source
	// Forgive, if set, deals with libraries' wishes to end the process that have another cure; see logging.Exits.
	Forgive func(component string, reason error) bool
}

// Run blocks until a signal arrives or a part fails for good. Where a part has ended that can run only once in a
// process, it executes the program anew and does not return.
func (p Process) Run(ctx context.Context) error {
	gctuning.Limit()
	begun := time.Now()
	env := os.Environ() // before what follows changes it
	systemd := takeNotifySocket()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ctx, stop := p.untilSignal(ctx, systemd)
	defer stop()

	last := p.lastEnd()
	var group *lifecycle.Group
	// The socket comes first and goes last, so that a slow start or stop can be looked at.
	st := &status.Server{Socket: p.Dirs.StatusSocket(), Version: version.Version, Ready: func() bool { return group.AllReady() },
		Sources: append([]status.Source{func(context.Context) status.Section { return endRows(last) }, func(context.Context) status.Section { return partRows(group) }}, p.Sources...)}
	exits := logging.CatchExits()
	if p.Forgive != nil {
		exits.Take(p.Forgive)
	}
	parts := append([]lifecycle.Part{{Name: "status", Run: st.Run}, {Name: "component-exits", Run: exits.Run}}, p.Parts...)
	hold(parts, last)
	group, err := lifecycle.New(p.Log, parts...)
	if err != nil {
		return err
	}
	go func() {
		if group.WaitReady(ctx) == nil {
			p.Log.Info("ready", "after", time.Since(begun).Round(time.Millisecond))
			if err := upgrade.Confirm(etc()); err != nil {
				p.Log.Warn("this version may be taken back at the next start", "error", err)
			}
			if err := datadisk.Keep(etc(), p.Dirs.Data, p.Dirs.Run); err != nil {
				p.Log.Warn("a start without the disk of the data will not be noticed", "error", err)
			}
			systemd(daemon.SdNotifyReady)
			gctuning.GiveBack(ctx)
		}
	}()
	err = group.Run(ctx)
	if anew := new(lifecycle.Anew); errors.As(err, &anew) {
		if err := p.anew(ctx, anew, err, env, stop); err != nil {
			return err
		}
		err = nil // a signal came first
	}
	if err == nil {
		p.Log.Info("stopped", "cause", context.Cause(ctx))
		return p.ends().Forget()
	}
	if _, e := p.ends().Note("", err, time.Now()); e != nil {
		p.Log.Warn("the next start will not know why umiak ended", "error", e)
	}
	return err
}

func partRows(g *lifecycle.Group) status.Section {
	s := status.Section{Name: "Parts"}
	for _, p := range g.Status() {
		row := status.Row{Name: p.Name, State: string(p.State), Detail: p.Error}
		switch in := time.Until(p.Next).Round(time.Second); {
		case p.State == lifecycle.Retrying && in > 0:
			row.Detail += fmt.Sprintf(" (attempt %d failed, the next is in %s)", p.Attempt, in)
		case p.State == lifecycle.Retrying:
			row.Detail += fmt.Sprintf(" (attempt %d is under way)", p.Attempt+1)
		case len(p.WaitingFor) > 0:
			row.Detail = fmt.Sprint("waiting for ", p.WaitingFor)
		case row.Detail == "":
			row.Detail = "for " + time.Since(p.Since).Round(time.Second).String()
		}
		s.Rows = append(s.Rows, row)
	}
	return s
}

// untilSignal ends the context at the first SIGTERM or SIGINT; a second one ends the process at once,
// for people who will not wait. Containers are not touched by either. After the function that it returns has been called, a
// signal ends the process, and whether one came before is known: then it is the context's cause.
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
		p.Hush()
		cancel(fmt.Errorf("signal: %s", s))
		signal.Stop(ch) // the next one does what it does by default
	}()
	return ctx, sync.OnceFunc(func() {
		signal.Stop(ch) // returns when each signal until then is in ch
		close(ch)
		<-done
	})
}

// takeNotifySocket returns a function that tells systemd a state, if systemd has started this process. The
// variables are removed, since the kubelet would say READY=1 through them when only it is ready.
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
			return // systemd will find out by its time-out
		}
		defer conn.Close() //nolint:errcheck // a datagram has been sent or not
		_, _ = conn.Write([]byte(state))
	}
}

// Own locks the data directory for this process, and has commands find it.
func Own(d layout.Dirs, log *slog.Logger) (release func(), err error) {
	if err := datadisk.Check(etc(), d.Data); err != nil {
		return nil, err
	}
	if release, err = instance.Acquire(d); err != nil {
		return nil, err
	}
	if err := instance.Registry(layout.Registry).Add(d); err != nil {
		log.Warn("commands find this node only with --data-dir and --run-dir", "error", err)
	}
	return release, nil
}

// etc is the folder of settings, which install.sh and packages make.
func etc() string { return filepath.Dir(config.DefaultFile) }

// BadConfig returns the error for settings that cannot be used, one line for each mistake.
func BadConfig(err error) error {
	return usageError{fmt.Errorf("these settings cannot be used:\n%w", config.Report(err))}
}

// NoArgs refuses arguments that a command does not take.
func NoArgs(c *ucli.Context) error {
	if c.Args().Present() {
		return Usagef(c, "%s takes no argument %q", helpName(c), c.Args().First())
	}
	return nil
}

// withRemedy is the text of an error, with what to do where another user than root is refused something.
func withRemedy(err error, uid int) string {
	msg := err.Error()
	if uid != 0 && errors.Is(err, fs.ErrPermission) && !strings.Contains(msg, "as root") {
		msg += "; run this as root"
	}
	return msg
}

// Exit prints what ended a command and returns the process's exit code.
func Exit(program string, err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	if msg := withRemedy(err, os.Geteuid()); msg != "" {
		fmt.Fprintf(stderr, "%s: %s\n", program, msg)
	}
	var code ucli.ExitCoder
	if errors.As(err, &code) {
		return code.ExitCode()
	}
	return 1
}
