package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/agent/runtime/containerd"
	"github.com/umiak-io/umiak/agent/runtime/foreign"
	"github.com/umiak-io/umiak/internal/instance"
)

// tried is the result of one of host's Try functions, whose errors have the form "problem: remedy".
func tried(name, good string, err error) []Result {
	if err == nil {
		return []Result{ok(name, "%s", good)}
	}
	return []Result{failed(name, err)}
}

// failed splits an error into problem and remedy.
func failed(name string, err error) Result {
	what := err.Error()
	fix := "see what the kernel's log says"
	if i := strings.LastIndex(what, "): "); i >= 0 {
		what, fix = what[:i+1], what[i+3:]
	} else if i := strings.LastIndex(what, ": "); i >= 0 {
		what, fix = what[:i], what[i+2:]
	}
	return missing(name, fix, "%s", what)
}

func kernelLog(context.Context, Config) []Result {
	return optionalInUserNamespace("kernel log", "can be read", host.TryKmsg())
}

func kernelSettings(_ context.Context, cfg Config) []Result {
	if cfg.ProtectKernel {
		return optionalInUserNamespace("kernel settings", "are the kubelet's", host.CheckSysctls())
	}
	return optionalInUserNamespace("kernel settings", "can be set", host.TrySysctls())
}

// optionalInUserNamespace is tried for what the kubelet can do without in a user namespace.
func optionalInUserNamespace(name, good string, err error) []Result {
	out := tried(name, good, err)
	if err != nil && host.InUserNamespace() {
		out[0].State = Warn
	}
	return out
}

// programs checks whether the data directory's file system allows executing programs.
func programs(_ context.Context, cfg Config) []Result {
	return tried("programs", "can be executed below "+cfg.Dirs.Data, host.TryExecIn(cfg.Dirs.Data))
}

// containerRuntime checks whether a container runtime that is not Umiak's answers, and whether the default OCI runtime
// is installed, where it is not the built-in one.
func containerRuntime(ctx context.Context, cfg Config) []Result {
	if cfg.RuntimeSocket != "" {
		name, err := foreign.Ask(ctx, cfg.RuntimeSocket)
		return tried("container runtime", name+" at "+cfg.RuntimeSocket, err)
	}
	path, err := containerd.FindRuntime(cfg.Runtime)
	if err == nil && path == "" {
		return nil
	}
	if err == nil {
		err = host.TryExec(ctx, path, "--version")
	}
	return tried("default runtime", path, err)
}

// selinux checks whether containers can get labels, where the settings ask for them.
func selinux(_ context.Context, cfg Config) []Result {
	if !cfg.SELinux {
		return nil
	}
	return tried("SELinux", "containers can get labels, or SELinux does not enforce", host.TrySELinux())
}

func folders(_ context.Context, cfg Config) []Result {
	for _, dir := range []string{cfg.Dirs.Data, cfg.Dirs.Run} {
		if err := host.TryDisk(dir); err != nil {
			return []Result{failed("folders", err)}
		}
	}
	return []Result{ok("folders", "%s and %s can be written", cfg.Dirs.Data, cfg.Dirs.Run)}
}

func hostsFile(context.Context, Config) []Result {
	return tried("hosts file", "there", host.TryHostsFile())
}

// userNamespace warns if umiak runs in a user namespace, in which root lacks many rights.
func userNamespace(context.Context, Config) []Result {
	if host.InUserNamespace() {
		return []Result{warn("user namespace",
			"run it in a privileged container or on the machine itself if something below is missing",
			"umiak is root of a user namespace only (an unprivileged container)")}
	}
	return nil
}

// port checks whether a port is free, or held by this node's running umiak.
func port(ctx context.Context, cfg Config, number int, remedy string) error {
	err := host.TryPort(ctx, "tcp", ":"+strconv.Itoa(number), remedy)
	if errors.Is(err, host.ErrPortHeld) {
		for _, h := range host.Holders("tcp", uint16(number)) {
			if h.PID == owner(cfg) {
				return nil
			}
		}
	}
	return err
}

// owner returns the PID of the process that has locked the data directory, 0 if there is none.
func owner(cfg Config) int {
	raw, err := os.ReadFile(cfg.Dirs.Lock())
	if errors.Is(err, fs.ErrNotExist) || !instance.Running(cfg.Dirs) {
		return 0
	}
	var pid int
	_, _ = fmt.Sscan(string(raw), &pid)
	return pid
}
