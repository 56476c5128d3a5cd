package machine

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Root is the folder under which every machine has its own; UMIAK_E2E_DIR overrides it. It must be on a
// disk, not on tmpfs or overlayfs.
func Root() string {
	if d := os.Getenv("UMIAK_E2E_DIR"); d != "" {
		return d
	}
	return "/var/tmp/umiak-e2e"
}

// Options say how a machine is made.
type Options struct {
	// Name is the host name; default m1.
	Name string
	// LAN is the network the machine is plugged into; without one it gets a network of its own.
	LAN *LAN
	// Bin is a folder on the host that is shown at Machine.Bin().
	Bin string
	// Persist lets the machine outlive this process; Open finds it again by its ID.
	Persist bool
	// System replaces the machine's own process 1.
	System System
}

// System is what a machine boots instead of the package's own process 1.
type System interface {
	// Script is run by sh in new network, mount and pid namespaces of the machine, and in its cgroups.
	// It must print "booted PID" with its own process id as the host has it, and then wait for a default
	// route before it goes on. DIR, NAME and DIST are set as for init.sh.
	Script() string
	// Leader waits for process 1, which may be any descendant of the script, and returns the host's number
	// for it.
	Leader(ctx context.Context, script int) (int, error)
}

// Machine is one isolated machine. Its fields are set by New and read-only afterwards.
type Machine struct {
	ID   string // unique on this host
	Name string // host name
	Dir  string // the machine's folder, at the same path inside and outside
	IP   string // its address on the LAN
	PID  int    // its process 1, as the host numbers it; 0 while it is off

	lan     *LAN
	port    string // of the LAN that it is plugged into
	ownLAN  bool
	bin     string
	persist bool
	system  System
	init    *holder
	cgroups []hierarchy
}

//go:embed init.sh
var initScript string

// New makes a machine and boots it. The caller must Destroy it.
func New(o Options) (*Machine, error) {
	if o.Name == "" {
		o.Name = "m1"
	}
	m := &Machine{Name: o.Name, ID: newID(o.Name), bin: o.Bin, persist: o.Persist, lan: o.LAN, system: o.System}
	m.Dir = filepath.Join(Root(), m.ID)
	err := m.create()
	if err == nil {
		err = m.Boot()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make machine %s: %w", o.Name, err), m.Destroy())
	}
	return m, nil
}

func (m *Machine) create() error {
	for _, d := range []string{"bin", "lib", "log", "opt", "etc", "etc.work", "home", "tmp"} {
		if err := os.MkdirAll(filepath.Join(m.Dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := writeOwner(m.Dir, m.persist); err != nil {
		return err
	}
	var err error
	if m.cgroups, err = makeCgroups(m.ID); err != nil {
		return err
	}
	if m.lan == nil {
		m.ownLAN = true
		if m.lan, err = NewLAN(LANOptions{Persist: m.persist}); err != nil {
			return err
		}
	}
	m.IP = m.lan.nextAddress()
	script := initScript
	if m.system != nil {
		script = m.system.Script()
	}
	if err := os.WriteFile(filepath.Join(m.Dir, "init.sh"), []byte(script), 0o755); err != nil {
		return err
	}
	// The LAN's gateway answers DNS where a test asks it to; nothing listens there otherwise.
	return m.WriteEtc("resolv.conf", "nameserver "+m.lan.Gateway()+"\n")
}

// WriteEtc writes a file below /etc of a machine that is off; use Do while it runs.
func (m *Machine) WriteEtc(name, text string) error {
	p := filepath.Join(m.Dir, "etc", name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	return os.WriteFile(p, []byte(text), 0o644)
}

// Bin is where the folder Options.Bin is seen inside the machine.
func (m *Machine) Bin() string { return filepath.Join(m.Dir, "bin") }

// LAN is the network that the machine is plugged into.
func (m *Machine) LAN() *LAN { return m.lan }

// Host returns where a path of the machine below /var/lib, /var/log, /opt or /etc lies on the host. What
// is mounted on top inside, such as a pod's volumes, is not seen there.
func (m *Machine) Host(path string) string {
	for inside, dir := range map[string]string{"/var/lib": "lib", "/var/log": "log", "/opt": "opt", "/etc": "etc"} {
		if rest, ok := strings.CutPrefix(path, inside+"/"); ok {
			return filepath.Join(m.Dir, dir, rest)
		}
	}
	return path
}

// Boot starts the machine's process 1 and plugs it into its LAN.
func (m *Machine) Boot() error {
	if m.PID != 0 {
		return errors.New("machine is running")
	}
	if m.system != nil {
		if err := m.resetCgroups(); err != nil {
			return err
		}
	}
	var groups, mounts []string
	for _, h := range m.cgroups {
		groups = append(groups, filepath.Join(h.group(m.ID), "cgroup.procs"))
		mounts = append(mounts, h.mount+" "+h.fstype+" "+h.options)
	}
	// The shell joins the cgroups first, for they become the root of the new cgroup namespace.
	const launch = `for p in $PROCS; do echo 0 >"$p"; done; exec unshare $SPACES --fork --kill-child -- sh "$DIR/init.sh"`
	spaces := "-C -m -n -u -i -p"
	if m.system != nil {
		spaces = "-m -n -p" // it makes the others
	}
	h, line, err := hold(m.persist, []string{"sh", "-euc", launch}, []string{
		"PROCS=" + strings.Join(groups, " "), "CGROUPS=" + strings.Join(mounts, "\n"),
		"DIR=" + m.Dir, "NAME=" + m.Name, "DIST=" + m.bin, "SPACES=" + spaces,
	})
	if err != nil {
		return fmt.Errorf("start process 1: %w", err)
	}
	m.init = h
	if m.PID, err = strconv.Atoi(strings.TrimPrefix(line, "booted ")); err != nil {
		return fmt.Errorf("start process 1: it says %q", line)
	}
	if err := m.lan.plug(m); err != nil {
		return fmt.Errorf("plug into LAN: %w", err)
	}
	if m.system != nil {
		ctx, cancel := context.WithTimeoutCause(context.Background(), 30*time.Second,
			errors.New("no process 1 after 30 s"))
		defer cancel()
		if m.PID, err = m.system.Leader(ctx, m.PID); err != nil {
			return fmt.Errorf("boot: %w", err)
		}
	}
	return m.save()
}

// resetCgroups recreates the machine's groups: no cgroup survives a real machine's reboot.
func (m *Machine) resetCgroups() error {
	for _, h := range m.cgroups {
		if err := removeCgroup(h.group(m.ID)); err != nil {
			return err
		}
	}
	var err error
	m.cgroups, err = makeCgroups(m.ID)
	return err
}

// WaitOff waits until the machine has shut down.
func (m *Machine) WaitOff(ctx context.Context) error {
	if m.PID == 0 || m.init == nil {
		return nil
	}
	select {
	case <-m.init.gone:
	case <-ctx.Done():
		return fmt.Errorf("wait for the machine to go down: %w", context.Cause(ctx))
	}
	m.PID = 0
	return nil
}

// PowerOff kills every process of the machine at once, as a power cut would; what was on its disks stays.
func (m *Machine) PowerOff() error {
	if m.PID == 0 {
		return nil
	}
	m.PID = 0
	if m.init == nil {
		return nil
	}
	return m.init.kill()
}

// Destroy kills what runs on the machine and removes all of it. It may be called at any time and twice.
func (m *Machine) Destroy() error {
	errs := []error{m.PowerOff()}
	for _, h := range m.cgroups {
		errs = append(errs, removeCgroup(h.group(m.ID)))
	}
	if m.ownLAN && m.lan != nil {
		errs = append(errs, m.lan.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(m.Dir))...)
}

// saved is what a later process needs to find a machine again.
type saved struct {
	Name, IP     string
	PID, Parent  int
	LAN          int
	Bin          string
	Persist      bool
	ParentStart  string
	LANStart     string
	OwnLAN       bool
	LANAddresses int
}

func (m *Machine) save() error {
	s := saved{Name: m.Name, IP: m.IP, PID: m.PID, Parent: m.init.pid, ParentStart: startOf(m.init.pid), Bin: m.bin,
		Persist: m.persist,
		OwnLAN:  m.ownLAN, LAN: m.lan.holder.pid, LANStart: startOf(m.lan.holder.pid), LANAddresses: m.lan.used}
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(m.Dir, "machine.json"), raw, 0o600)
}

// Open finds a machine that another process made.
func Open(id string) (*Machine, error) {
	m := &Machine{ID: id, Dir: filepath.Join(Root(), id)}
	raw, err := os.ReadFile(filepath.Join(m.Dir, "machine.json"))
	if err != nil {
		return nil, fmt.Errorf("open machine: %w", err)
	}
	var s saved
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("open machine %s: %w", id, err)
	}
	m.Name, m.IP, m.bin, m.persist, m.ownLAN = s.Name, s.IP, s.Bin, s.Persist, s.OwnLAN
	m.lan = &LAN{used: s.LANAddresses, persist: s.Persist}
	if m.cgroups, err = hierarchies(); err != nil {
		return nil, err
	}
	// A pid alone may belong to another process by now.
	if startOf(s.Parent) == s.ParentStart {
		m.PID, m.init = s.PID, &holder{pid: s.Parent}
	}
	if startOf(s.LAN) == s.LANStart {
		m.lan.holder = &holder{pid: s.LAN}
	}
	return m, nil
}

// holder is a process that keeps namespaces alive.
type holder struct {
	pid  int
	cmd  *exec.Cmd     // nil when another process started it
	gone chan struct{} // closed once it was waited for
}

// hold starts a process and returns the first line that it prints. Unless it is to persist, it is killed
// when this process ends, however that comes about.
func hold(persist bool, argv, env []string) (*holder, string, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, "", err
	}
	defer r.Close() //nolint:errcheck // only read from
	cmd := exec.CommandContext(context.Background(), argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	var stderr strings.Builder
	cmd.Stdout, cmd.Dir = w, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if !persist {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
		cmd.Stderr = &stderr
	}
	h := &holder{cmd: cmd, gone: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The signal is sent when the thread that forked ends, so that thread is kept for as long.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // killed is how it always ends
			close(h.gone)
		}
		runtime.UnlockOSThread()
	}()
	err = <-started
	_ = w.Close()
	if err != nil {
		return nil, "", err
	}
	h.pid = cmd.Process.Pid
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		_ = h.kill()
		return nil, "", fmt.Errorf("%s ended before it was up: %w: %s", argv[0], err, stderr.String())
	}
	return h, strings.TrimSpace(line), nil
}

// kill ends the process and all that lives in its pid namespace, and returns when they are gone.
func (h *holder) kill() error {
	if err := syscall.Kill(h.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill process %d: %w", h.pid, err)
	}
	if h.gone != nil {
		<-h.gone
		return nil
	}
	return waitExit(context.Background(), h.pid)
}

// waitExit waits for a process that is not a child of this one.
func waitExit(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("watch process %d: %w", pid, err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing to lose
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("watch process %d: %w", pid, err)
		}
	}
	return context.Cause(ctx)
}
