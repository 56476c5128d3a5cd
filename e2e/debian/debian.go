package debian

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/umiak-io/umiak/e2e/machine"
)

// System is a Debian for machine.Options.System.
type System struct {
	rootfs string
}

var _ machine.System = System{}

// New makes the root file system where there is none yet, which takes a minute or two. An error that
// wraps ErrUnavailable means that it cannot be had here.
func New(ctx context.Context) (System, error) {
	dir, err := rootfs(ctx)
	return System{rootfs: dir}, err
}

//go:embed launch.sh
var launch string

// Script implements machine.System.
func (s System) Script() string { return strings.ReplaceAll(launch, "@ROOTFS@", s.rootfs) }

// Leader implements machine.System: systemd is the child of nspawn, which the script has become.
func (s System) Leader(ctx context.Context, script int) (int, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if pid := child(script, "systemd"); pid != 0 {
			return pid, nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for systemd: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

func child(parent int, comm string) int {
	all, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range all {
		raw, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		s := string(raw)
		open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
		rest := strings.Fields(s[end+1:])
		if len(rest) > 1 && s[open+1:end] == comm && rest[1] == strconv.Itoa(parent) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			return pid
		}
	}
	return 0
}

// Booted waits until systemd has started all that it is to start. Units that failed are an error.
func Booted(ctx context.Context, m *machine.Machine) error {
	for {
		// Its socket cannot be waited for from outside; once there, systemctl does the waiting.
		state, err := Systemctl(ctx, m, "is-system-running", "--wait")
		switch state = strings.TrimSpace(state); {
		case err == nil:
			return nil
		case state == "degraded":
			failed, _ := Systemctl(ctx, m, "--failed", "--no-legend", "--plain")
			return errors.New("boot: units failed: " + failed)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("boot: %w: system is %q: %w", context.Cause(ctx), state, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Systemctl runs systemctl on the machine.
func Systemctl(ctx context.Context, m *machine.Machine, args ...string) (string, error) {
	return m.Run(ctx, "/usr/bin/systemctl", args...)
}

// PowerOff shuts the machine down in order and waits until it is off; machine.PowerOff is the power cut.
func PowerOff(ctx context.Context, m *machine.Machine) error { return down(ctx, m, "poweroff") }

// Reboot shuts the machine down in order and boots it again.
func Reboot(ctx context.Context, m *machine.Machine) error {
	if err := down(ctx, m, "reboot"); err != nil {
		return err
	}
	return m.Boot()
}

func down(ctx context.Context, m *machine.Machine, how string) error {
	// systemctl itself may be ended by what it asks for.
	_, asked := Systemctl(ctx, m, how)
	if err := m.WaitOff(ctx); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", how, err), asked)
	}
	return nil
}
