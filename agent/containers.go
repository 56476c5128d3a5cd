package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/umiak-io/umiak/agent/dataplane/network"
	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/agent/host/folders"
	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/agent/runtime/containerd"
	"github.com/umiak-io/umiak/agent/runtime/images"
	"github.com/umiak-io/umiak/agent/runtime/programs"
	"github.com/umiak-io/umiak/internal/lifecycle"
)

// followAddresses ends the process, which executes itself again, when the node has other addresses than the kubelet was
// started with.
func (a *Agent) followAddresses(ctx context.Context, ready func()) error {
	err := a.addrs.Run(ctx, ready)
	if moved := new(nodeip.Moved); errors.As(err, &moved) {
		return &lifecycle.ReexecError{Part: nodeip.Part, Err: moved}
	}
	return err
}

// runMachine examines the machine. Everything that changes it waits for this part; what is wrong with it and does not
// keep the node from starting is an error after ready.
func (a *Agent) runMachine(ctx context.Context, ready func()) error {
	if a.stage.Machine() == nil {
		if err := errors.Join(os.MkdirAll(a.dirs.Agent(), 0o700), images.MakeFolder(a.dirs.Images())); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		m, err := host.Examine(a.dirs.NodeState(), a.cfg.CgroupRoot)
		if err != nil {
			return err
		}
		a.stage.SetMachine(m)
	}
	ready()
	if err := host.TryHostsFile(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// showFolders makes the kubelet's root and the logs visible where pods of the system look for them. Containers are made
// with these paths, so it comes before containerd.
func (a *Agent) showFolders(j *host.Journal) error {
	if err := folders.Kubelet(a.dirs).Show(j); err != nil {
		return err
	}
	if err := folders.Logs(a.dirs).Show(j); err != nil {
		a.log.Warn("log collectors do not find the logs of pods in /var/log/pods", "dir", a.dirs.PodLogs(), "error", err)
	}
	return nil
}

// runForeign waits for a container runtime that is not Umiak's. Its settings name the folders of the network's
// configuration and plugins, which are unpacked here.
func (a *Agent) runForeign(ctx context.Context, ready func()) error {
	if err := a.showFolders(a.stage.Machine().Journal); err != nil {
		return err
	}
	if _, err := programs.Unpack(ctx, a.dirs.Bundle()); err != nil {
		return err
	}
	return a.foreign.Run(ctx, ready)
}

func (a *Agent) runContainerd(ctx context.Context, ready func()) error {
	m := a.stage.Machine()
	if err := a.showFolders(m.Journal); err != nil {
		return err
	}
	programs, err := programs.Unpack(ctx, a.dirs.Bundle())
	if err != nil {
		return err
	}
	if a.cfg.SELinux {
		if err := host.TrySELinux(); err != nil {
			return err
		}
	}
	// What follows can be started only once a process.
	for _, dir := range []string{a.dirs.Agent(), a.dirs.Run} {
		if err := host.TryDisk(dir); err != nil {
			return err
		}
	}
	if err := host.TryExec(ctx, programs.Runc, "--version"); err != nil {
		return err
	}
	switch path, err := containerd.FindRuntime(a.cfg.DefaultRuntime); {
	case err != nil:
		return err
	case path != "":
		if err := host.TryExec(ctx, path, "--version"); err != nil {
			return fmt.Errorf("default-runtime: %w", err)
		}
	}
	if err := host.TryInotify(2); err != nil {
		return err
	}
	shims, err := host.ShimCgroup(m.Cgroup, a.cfg.CgroupRoot, m.Journal)
	if err != nil {
		return err
	}
	backend, err := a.flannelBackend(ctx)
	if err != nil {
		return err
	}
	cfg := containerd.Config{
		Dirs: a.dirs, Programs: programs, Snapshotter: a.cfg.Snapshotter, OwnNetwork: backend == network.None,
		Runtime: a.cfg.DefaultRuntime, SELinux: a.cfg.SELinux, NonrootDevices: a.cfg.NonrootDevices,
		SystemdCgroup: m.Cgroup.Driver == host.DriverSystemd, ShimCgroup: shims, Registry: a.share,
		Log: a.log.With("component", "containerd"),
	}
	if _, err := os.Stat(cfg.CNIConfigDir()); cfg.OwnNetwork && errors.Is(err, fs.ErrNotExist) {
		if err := m.Journal.Made(host.KindPath, cfg.CNIConfigDir()); err != nil {
			return err
		}
	}
	c, err := containerd.New(cfg)
	if err != nil {
		return err
	}
	return c.Run(ctx, ready)
}

// flannelBackend returns the cluster's, which decides where containerd looks for the network. A machine that joins its
// first cluster learns it only then.
func (a *Agent) flannelBackend(ctx context.Context) (string, error) {
	if a.backend != "" {
		return a.backend, nil
	}
	n, err := a.stage.AwaitNode(ctx)
	if err != nil {
		return "", err
	}
	return n.facts.FlannelBackend, nil
}
