package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/sirupsen/logrus"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/lifecycle"
)

// Containerd is one containerd. Run can be called once in a process.
type Containerd struct{ cfg Config }

// New validates the configuration and returns a containerd that is not started yet.
func New(cfg Config) (*Containerd, error) {
	if cfg.Log == nil || cfg.Dirs.Data == "" || cfg.Dirs.Run == "" {
		return nil, errors.New("containerd: directories and log must be set")
	}
	if cfg.Snapshotter != overlayfs && cfg.Snapshotter != native {
		return nil, fmt.Errorf("containerd: snapshotter %q is neither %s nor %s", cfg.Snapshotter, overlayfs, native)
	}
	p := cfg.Programs
	for _, path := range []string{p.Runc, p.Shim, p.CNIDir, p.Pause} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("containerd: the path of a program is not absolute: %q", path)
		}
	}
	return &Containerd{cfg: cfg}, nil
}

const (
	overlayfs = "overlayfs"
	native    = "native"
)

// Run starts containerd, calls ready when its CRI service answers, and stops containerd when ctx ends. Containers keep
// running.
func (c *Containerd) Run(ctx context.Context, ready func()) error {
	if err := c.run(ctx, ready); err != nil {
		return fmt.Errorf("run containerd: %w", err)
	}
	return nil
}

func (c *Containerd) run(ctx context.Context, ready func()) error {
	s, err := c.probe()
	if err != nil {
		return err
	}
	config := c.cfg.render(s)
	if err := server.CreateTopLevelDirectories(config); err != nil {
		return err
	}
	for _, d := range []string{c.cfg.CNIConfigDir(), ShimSockets(c.cfg.Dirs)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	b, err := text(config)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(c.cfg.Dirs.ContainerdState(), "config.toml"), b, 0o600); err != nil {
		return err
	}

	if err := usePath(filepath.Dir(c.cfg.Programs.Shim)); err != nil {
		return err
	}
	failed := make(chan error, 1)
	// Not ctx itself: upstream services use their start context for as long as they live, and a request in progress
	// when ctx ends must not fail before the server stops.
	sctx := log.WithLogger(context.WithoutCancel(ctx), logrus.NewEntry(logger(failed)))
	if err := c.wrapPlugins(s); err != nil {
		return err
	}
	if err := c.serve(ctx, sctx, config, failed, ready); err != nil {
		return &lifecycle.ReexecError{Part: "containerd", Err: err} // upstream's plugins start once per process
	}
	return nil
}

// serve runs containerd's plugins until ctx ends or one of them fails.
func (c *Containerd) serve(ctx, sctx context.Context, config *srvconfig.Config, failed <-chan error,
	ready func()) error {
	srv, err := server.New(sctx, config)
	if err != nil {
		return err
	}
	defer srv.Stop()
	if err := srv.Start(sctx); err != nil {
		return err
	}
	for _, sock := range []string{c.cfg.Dirs.ContainerdSocket(), ttrpcSocket(c.cfg.Dirs)} {
		if err := os.Chmod(sock, 0o600); err != nil {
			return err
		}
	}
	answers := make(chan struct{})
	go func() { srv.Wait(); close(answers) }()
	for {
		select {
		case <-answers:
			ready()
			answers = nil
		case err := <-failed:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// usePath puts the shim's folder first in this process's PATH. The configured runtime_path is not enough: when
// containerd starts while containers run, it looks up the shim of every container except the sandbox by the runtime's
// name alone (core/runtime/v2/shim_load.go), and drops the containers whose shim it does not find. With it, `ctr run`
// and nerdctl also work on a machine where no runtime is installed.
func usePath(dir string) error {
	path := os.Getenv("PATH")
	if path == dir || strings.HasPrefix(path, dir+":") {
		return nil
	}
	return os.Setenv("PATH", strings.TrimSuffix(dir+":"+path, ":"))
}

// logger copies the process's logrus logger and changes what a fatal message does: upstream ends the process when a
// service fails; here only the goroutine that logs the message ends, and Run returns the message as an error.
func logger(failed chan<- error) *logrus.Logger {
	std := logrus.StandardLogger()
	l := &logrus.Logger{Out: std.Out, Hooks: logrus.LevelHooks{}, Formatter: std.Formatter,
		ReportCaller: std.ReportCaller, Level: std.GetLevel()}
	for level, hooks := range std.Hooks {
		l.Hooks[level] = append([]logrus.Hook(nil), hooks...)
	}
	l.AddHook(fatalHook{failed})
	l.ExitFunc = func(int) { runtime.Goexit() }
	return l
}

// fatalHook sends a fatal message to Run as an error.
type fatalHook struct{ failed chan<- error }

func (fatalHook) Levels() []logrus.Level { return []logrus.Level{logrus.FatalLevel} }

func (h fatalHook) Fire(e *logrus.Entry) error {
	err := errors.New(e.Message)
	if cause, ok := e.Data[logrus.ErrorKey].(error); ok {
		err = fmt.Errorf("%s: %w", e.Message, cause)
	}
	select {
	case h.failed <- err:
	default: // Run returns the first error
	}
	return nil
}

// wrapPlugins wraps two of upstream's plugins; see transfer.go and pause.go.
func (c *Containerd) wrapPlugins(s settings) error {
	all := registry.Graph(func(*plugin.Registration) bool { return false })
	registry.Reset()
	wrapped := 0
	for _, r := range all {
		inner := r.InitFn
		switch {
		case r.Type == plugins.TransferPlugin:
			r.InitFn = func(ic *plugin.InitContext) (any, error) { return wrapTransfer(ic, inner, c.cfg.Registry) }
			wrapped++
		case r.Type == plugins.GRPCPlugin && r.ID == "cri":
			r.InitFn = func(ic *plugin.InitContext) (any, error) {
				if err := ensurePause(ic, c.cfg.Programs.Pause, s.snapshotter); err != nil {
					return nil, fmt.Errorf("create the pause image: %w", err)
				}
				return inner(ic)
			}
			wrapped++
		}
		registry.Register(&r)
	}
	if wrapped != 2 {
		return fmt.Errorf("wrap containerd's plugins: found %d of 2", wrapped)
	}
	return nil
}

// probe determines what this machine supports, and logs what it falls back to.
func (c *Containerd) probe() (settings, error) {
	s := settings{snapshotter: c.cfg.Snapshotter}
	var err error
	if s.runtime, err = FindRuntime(c.cfg.Runtime); err != nil {
		return s, err
	}
	root := c.cfg.Dirs.ContainerdRoot()
	if err := os.MkdirAll(root, 0o700); err != nil {
		return s, err
	}
	if s.snapshotter == overlayfs {
		if err := overlayutils.Supported(root); err != nil {
			c.cfg.Log.Warn("the data directory does not support overlayfs, every container gets a full copy of its image (snapshotter native)",
				"dir", root, "error", err)
			s.snapshotter = native
		}
	}
	ok, err := mayLowerOOMScore("/proc/self/oom_score_adj")
	if err != nil {
		return s, err
	}
	if s.restrictOOM = !ok; s.restrictOOM {
		c.cfg.Log.Warn("cannot protect pod sandboxes from the kernel's OOM killer (CAP_SYS_RESOURCE is missing), continuing without")
	}
	return s, nil
}

// mayLowerOOMScore reports whether this process may set the OOM score that a pod sandbox needs (-998). It writes the
// score and restores the previous one.
func mayLowerOOMScore(file string) (bool, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return false, err
	}
	now, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return false, fmt.Errorf("read %s: %w", file, err)
	}
	const needed = -998
	if now <= needed {
		return true, nil
	}
	switch err := os.WriteFile(file, []byte(strconv.Itoa(needed)), 0); {
	case errors.Is(err, fs.ErrPermission):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, os.WriteFile(file, b, 0)
}
