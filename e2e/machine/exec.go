package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

type space struct {
	name string
	flag int
}

var (
	netSpace = space{"net", unix.CLONE_NEWNET}
	mntSpace = space{"mnt", unix.CLONE_NEWNS}
	allSpace = []space{netSpace, {"uts", unix.CLONE_NEWUTS}, {"ipc", unix.CLONE_NEWIPC}, {"pid", unix.CLONE_NEWPID},
		{"cgroup", unix.CLONE_NEWCGROUP}, mntSpace}
)

// enter runs f on a thread of its own in namespaces of a process. The thread ends with f, so nothing
// else ever runs there. f must not rely on goroutines that it starts.
func enter(pid int, spaces []space, f func() error) error { return enterFrom(pid, spaces, nil, f) }

// enterFrom is enter with something to do on the thread while it still is outside.
func enterFrom(pid int, spaces []space, outside, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end and would stay inside for good. While it is held here, the next
			// goroutine gets another.
			err := enterFrom(pid, spaces, outside, f)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		// Never unlocked: the thread ends with the goroutine.
		done <- func() error {
			var fds []int
			defer func() {
				for _, fd := range fds {
					_ = unix.Close(fd)
				}
			}()
			for _, s := range spaces { // all are opened before the first is entered: /proc changes with it
				fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, s.name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					return fmt.Errorf("open %s namespace of process %d: %w", s.name, pid, err)
				}
				fds = append(fds, fd)
			}
			if outside != nil {
				if err := outside(); err != nil {
					return err
				}
			}
			// A thread that shares its working directory with others may not change mount namespace.
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare working directory: %w", err)
			}
			for i, s := range spaces {
				if err := unix.Setns(fds[i], s.flag); err != nil {
					return fmt.Errorf("enter %s namespace: %w", s.name, err)
				}
			}
			return f()
		}()
	}()
	return <-done
}

// Do runs f on a thread in the machine's network and mount namespaces: files that it opens and sockets
// that it makes are the machine's. f must not leave that to goroutines that it starts.
func (m *Machine) Do(f func() error) error {
	if m.PID == 0 {
		return errors.New("machine is off")
	}
	return enter(m.PID, []space{netSpace, mntSpace}, f)
}

// Env is the environment in which programs run in the machine.
func (m *Machine) Env() []string {
	return []string{
		"PATH=" + m.Bin() + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + filepath.Join(m.Dir, "home"), "TMPDIR=" + filepath.Join(m.Dir, "tmp"), "LANG=C.UTF-8",
	}
}

// Command is a command to Start or Run in the machine. A name without a slash is looked up in Bin first.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if p := filepath.Join(m.Bin(), name); !strings.Contains(name, "/") {
		if _, err := os.Stat(filepath.Join(m.bin, name)); err == nil && m.bin != "" {
			name = p
		}
	}
	cmd := exec.CommandContext(ctx, name, args...)
	if filepath.IsAbs(name) {
		cmd.Err = nil // what is at that path outside says nothing of what is there inside
	}
	cmd.Env, cmd.Dir = m.Env(), filepath.Join(m.Dir, "home")
	return cmd
}

// Start starts a command in all of the machine's namespaces and in its cgroups.
func (m *Machine) Start(cmd *exec.Cmd) error {
	if m.PID == 0 {
		return errors.New("machine is off")
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true // a ^C in the terminal is for the tests, which then stop it
	join, release, err := m.joinCgroups(cmd.SysProcAttr)
	if err != nil {
		return fmt.Errorf("join cgroups: %w", err)
	}
	defer release()
	return enterFrom(m.PID, allSpace, join, cmd.Start)
}

// Run runs a command and returns what it printed on stdout; the error has its stderr.
func (m *Machine) Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := m.Command(ctx, name, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := m.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err,
			strings.TrimSpace(errOut.String()))
	}
	return out.String(), err
}

// Dial connects from inside the machine. The address must be numeric.
func (m *Machine) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if m.PID == 0 {
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ENETUNREACH}
	}
	return DialFrom(ctx, m.PID, network, addr)
}

// DialFrom connects from the network namespace of any process.
func DialFrom(ctx context.Context, pid int, network, addr string) (net.Conn, error) {
	var c net.Conn
	err := enter(pid, []space{netSpace}, func() (err error) {
		c, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}
