// Command readme does on this machine what README.md shows a newcomer: scripts/up, the commands of "A first session",
// scripts/down. Then it compares what the machine has (mounts, interfaces, rules, cgroups, processes, sysctls, files)
// with what it had before.
//
// scripts/test runs it as its phase readme. It is for machines on which nothing else is Umiak's, as those of CI are.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/umiak-io/umiak/e2e/images"
	"github.com/umiak-io/umiak/e2e/machine"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "readme:", err)
		os.Exit(1)
	}
}

// settle bounds how long something may take to end, or to answer, after the command that causes it has returned.
const settle = 15 * time.Second

func run(ctx context.Context) (err error) {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	lock, err := os.OpenFile("/run/lock/umiak-readme.lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // ends the lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("wait for others that do the same: %w", err)
	}
	for _, p := range []string{"/var/lib/umiak", "/run/umiak", "/etc/umiak", "/var/lib/kubelet"} {
		if _, err := os.Lstat(p); err == nil {
			return fmt.Errorf("%s is there: this needs a machine without Umiak or another Kubernetes", p)
		}
	}
	m := checkout{root: root}
	if err := m.archive(ctx); err != nil {
		return err
	}
	before, err := m.snapshot(ctx)
	if err != nil {
		return err
	}
	defer func() {
		// Also after a failure or an interruption.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
		defer cancel()
		err = errors.Join(err, m.command(ctx, "scripts/down"), m.compare(ctx, before))
	}()
	if err := m.command(ctx, "scripts/up"); err != nil {
		return err
	}
	return m.session(ctx)
}

// checkout is the working tree that is tried.
type checkout struct{ root string }

func (c checkout) command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(c.root, name), args...)
	cmd.Dir = c.root
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	return output(cmd)
}

// output runs a command; what it prints is shown, and is in the error's place when it fails.
func output(cmd *exec.Cmd) error {
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	return nil
}

func (c checkout) image() string { return filepath.Join(c.root, ".cache", "readme.tar") }

// archive writes the image of README.md's session to a file, as a newcomer without a registry would bring it.
func (c checkout) archive(ctx context.Context) error {
	set, err := images.Build(ctx)
	if err != nil {
		return err
	}
	return set.Write(c.image(), images.Nginx)
}

// session runs the commands of README.md's first session and then looks inside of the pod. It leaves the pod for
// scripts/down.
func (c checkout) session(ctx context.Context) error {
	lines, err := c.sessionLines()
	if err != nil {
		return err
	}
	lines = slices.Concat([]string{"dist/umiak images import " + c.image()}, lines, []string{
		"dist/umiak kubectl exec deployment/hello -- cat /etc/resolv.conf",
		"dist/umiak kubectl logs deployment/hello",
		"dist/umiak status",
	})
	for _, l := range lines {
		if err := c.line(ctx, l); err != nil {
			_ = c.command(ctx, "dist/umiak", "kubectl", "describe", "pods")
			return err
		}
	}
	return nil
}

const heading = "## A first session"

// sessionLines returns the commands of the section heading of README.md: the lines that begin with "    $ ".
func (c checkout) sessionLines() ([]string, error) {
	raw, err := os.ReadFile(filepath.Join(c.root, "README.md"))
	if err != nil {
		return nil, err
	}
	_, section, found := strings.Cut(string(raw), "\n"+heading+"\n")
	if !found {
		return nil, fmt.Errorf("README.md has no section %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var out []string
	for l := range strings.Lines(section) {
		if cmd, ok := strings.CutPrefix(strings.TrimRight(l, "\n"), "    $ "); ok {
			out = append(out, strings.TrimPrefix(cmd, "sudo "))
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("section %q of README.md has no command", heading)
	}
	return out, nil
}

// line runs one command of the session in a shell. curl is repeated: a new endpoint reaches the node's rules a moment
// after the Deployment is available, and nothing reports that.
func (c checkout) line(ctx context.Context, line string) error {
	deadline := time.Now().Add(settle)
	for {
		fmt.Println("$", line)
		cmd := exec.CommandContext(ctx, "bash", "-o", "pipefail", "-c", line)
		cmd.Dir = c.root
		err := output(cmd)
		if err == nil || !strings.HasPrefix(line, "curl ") || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// snapshot leaves out the checkout, caches, and what belongs to other tests and to the package manager: scripts/up
// installs what a build needs.
func (c checkout) snapshot(ctx context.Context) (machine.Snapshot, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, err
	}
	exclude := []string{
		c.root, machine.Root(), "/var/cache", "/var/tmp", "/var/log/journal", "/var/lib/apt", "/var/lib/dpkg",
		"/var/log/apt", "/run/lock",
		filepath.Join(home, ".cache"), filepath.Join(home, ".config/go"), filepath.Join(home, "go"), "/usr/local/go",
		"/run/systemd", "/run/udev", "/var/lib/machines",
	}
	return machine.HostSnapshot(ctx, []string{filepath.Join(c.root, "dist"), "/var/lib/umiak"}, exclude)
}

// compare says what is not as it was.
func (c checkout) compare(ctx context.Context, before machine.Snapshot) error {
	deadline := time.Now().Add(settle)
	for {
		after, err := c.snapshot(ctx)
		if err != nil {
			return err
		}
		diff := ours(before.Diff(after))
		if len(diff) == 0 {
			fmt.Println("the machine is as it was")
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the machine is not as it was:\n%s", strings.Join(diff, "\n"))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(500 * time.Millisecond): // other programs of the machine make no events of what they do
		}
	}
}

// machineWide are the sysctls that a kubelet sets and that no namespace has for itself.
var machineWide = []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"}

// ours leaves out what other nodes on this machine, in namespaces of their own, change for all of it.
func ours(diff []string) []string {
	if !others() {
		return diff
	}
	var out []string
next:
	for _, l := range diff {
		for _, s := range machineWide {
			if strings.Contains(l, "sysctls: "+s+" ") {
				fmt.Println("not compared, because other nodes run here:", l)
				continue next
			}
		}
		out = append(out, l)
	}
	return out
}

// others reports whether a process named umiak runs.
func others() bool {
	all, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, p := range all {
		f, err := os.Open(p)
		if err != nil {
			continue
		}
		raw, _ := io.ReadAll(f)
		_ = f.Close()
		if strings.HasPrefix(string(raw), "umiak") {
			return true
		}
	}
	return false
}
