package nodecmd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/agent/upgrade"
	"github.com/umiak-io/umiak/agent/worker"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/config/k3s"
	"github.com/umiak-io/umiak/internal/httpproxy"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/internal/process"
)

// Agent is the command that runs a node: `umiak agent`, and what `umiak-agent` does by default.
func Agent() *ucli.Command {
	var cfg agent.Config
	var lc logging.Config
	foreign := k3s.Keys(true)
	return &ucli.Command{
		Name:  "agent",
		Usage: "run a node that joins a cluster",
		Description: "Runs containerd, kubelet, network, service proxy and DNS in this process.\n\n" +
			"  umiak agent --server https://10.0.0.1:6443 --token TOKEN",
		Flags: config.Flags(&cfg, &lc, foreign),
		Action: func(c *ucli.Context) error {
			if err := NoArgs(c); err != nil {
				return err
			}
			s, err := config.Load(c, &cfg, &lc, foreign)
			if v := cfg.Verbosity(); v.Level > 0 || len(v.Modules) > 0 {
				lc = lc.WithFlags(v.Level, v.Modules)
			}
			if err := errors.Join(err, s.Locate(errors.Join(cfg.ValidateValues(), lc.Validate()))); err != nil {
				return BadConfig(err)
			}
			return runAgent(c, s, cfg, lc)
		},
	}
}

// WarnSettings logs what is odd about loaded settings and is no reason to refuse them: files with secrets that others
// than root can read, what looks like a setting and does nothing, and keys that are accepted without effect.
func WarnSettings(log *slog.Logger, s config.Settings, settings ...any) {
	for _, why := range slices.Concat(s.Exposed, remarks(s, settings)) {
		log.Warn(why)
	}
	for _, why := range s.Unused {
		log.Info(why)
	}
}

// remarks names what looks like a setting of the structs and does nothing.
func remarks(loaded config.Settings, settings []any) []string {
	out := slices.Clone(loaded.Remarks)
	for _, s := range settings {
		if cfg, ok := s.(interface{ PassedOver() []string }); ok {
			out = append(out, cfg.PassedOver()...)
		}
		if cfg, ok := s.(interface{ Disables(name string) bool }); ok && k3s.Uses(loaded) && !cfg.Disables("traefik") {
			out = append(out, k3s.NoTraefik)
		}
	}
	return out
}

// runAgent runs a node whose servers are other machines.
func runAgent(c *ucli.Context, s config.Settings, cfg agent.Config, lc logging.Config) error {
	target, err := worker.TargetOf(cfg)
	if err != nil {
		return BadConfig(err)
	}
	log, libraries, err := logging.Setup(lc, c.App.ErrWriter)
	if err != nil {
		return err
	}
	WarnSettings(log, s, &cfg, &lc)
	if err := httpproxy.Exempt(); err != nil {
		return err
	}
	release, err := process.Claim(cfg.Dirs(), Etc(), log)
	if err != nil {
		return err
	}
	defer release()
	w, err := worker.New(cfg, target, log)
	if err != nil {
		return err
	}
	return process.Process{
		Dirs: cfg.Dirs(), Etc: Etc(), Log: log, Silence: libraries.Silence, Forgive: w.Forgive, Confirm: Confirm,
		Profiles: cfg.EnablePprof,
		Parts:    w.Parts(), Sources: w.Sources(),
	}.Run(c.Context)
}

// Confirm records that the version that runs works on this machine; see upgrade.Confirm.
func Confirm() error { return upgrade.Confirm(Etc()) }

// Etc is the folder of settings, which install.sh and packages make.
func Etc() string { return filepath.Dir(config.DefaultFile) }

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
