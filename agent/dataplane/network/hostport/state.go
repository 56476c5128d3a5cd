package hostport

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/internal/filelock"
	"github.com/umiak-io/umiak/internal/listing"
)

// state is the record of a pod on disk. The folder is on a tmpfs: rules do not survive a reboot either.
type state struct {
	Container string `json:"container"`
	Netns     string `json:"netns"` // its path, which is there for as long as the pod is
	Ports     []port `json:"ports"`
}

// port is a mapping as it is written down.
type port struct {
	Protocol byte       `json:"protocol"`
	Host     netip.Addr `json:"host"`
	HostPort uint16     `json:"hostPort"`
	Pod      netip.Addr `json:"pod"`
	PodPort  uint16     `json:"podPort"`
}

func (m mapping) port() port {
	return port{Protocol: m.proto, Host: m.host, HostPort: m.hostPort, Pod: m.pod, PodPort: m.podPort}
}

func (s state) mappings() []mapping {
	var out []mapping
	for _, p := range s.Ports {
		out = append(out, mapping{proto: p.Protocol, host: p.Host, hostPort: p.HostPort, pod: p.Pod, podPort: p.PodPort})
	}
	return out
}

func stateFile(dir, container string) (string, error) {
	if container == "" || strings.ContainsAny(container, "/.") {
		return "", fmt.Errorf("%q is not a container's id", container)
	}
	return filepath.Join(dir, container+".json"), nil
}

func (s state) write(dir string) error {
	if dir == "" {
		return nil // configured by an older version
	}
	file, err := stateFile(dir, s.Container)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("write down host ports: %w", err)
	}
	if err := os.WriteFile(file+".tmp", raw, 0o600); err != nil {
		return fmt.Errorf("write down host ports: %w", err)
	}
	if err := os.Rename(file+".tmp", file); err != nil {
		return fmt.Errorf("write down host ports: %w", err)
	}
	return nil
}

func forget(dir, container string) error {
	if dir == "" {
		return nil
	}
	file, err := stateFile(dir, container)
	if err != nil {
		return err
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget host ports: %w", err)
	}
	return nil
}

// lock serializes the plugin's calls and Restore.
func lock(dir string) (unlock func(), err error) {
	if dir == "" {
		return func() {}, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	return filelock.Wait(filepath.Join(dir, "lock"))
}

// running reads the pods that are there. What is left of others is removed.
func running(dir string) ([]state, error) {
	files, err := listing.Match(dir, "*.json")
	if err != nil {
		return nil, err
	}
	var out []state
	var errs []error
	for _, f := range files {
		var s state
		raw, err := os.ReadFile(f)
		if err == nil {
			err = json.Unmarshal(raw, &s)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("read host ports %s: %w", f, err))
			continue
		}
		if _, err := os.Stat(s.Netns); s.Netns != "" && errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, os.Remove(f))
			continue
		}
		out = append(out, s)
	}
	return out, errors.Join(errs...)
}

// Restore opens the ports of all running pods again whose rules were removed or changed, in one step through conn. dir
// is the plugin's state folder. It reports whether there were any.
func Restore(ctx context.Context, conn *netfilter.Conn, dir string) (bool, error) {
	if _, err := os.Stat(dir); err != nil {
		return false, nil // no pod has had host ports
	}
	unlock, err := lock(dir)
	if err != nil {
		return false, err
	}
	defer unlock()
	pods, bad := running(dir)
	t := openTable(conn)
	broken, err := t.broken(pods)
	if err != nil || len(broken) == 0 {
		return false, errors.Join(bad, err)
	}
	err = t.Change(ctx, func(b *netfilter.Batch) error {
		err := t.addFrame(b)
		for _, s := range broken {
			err = errors.Join(err, t.drop(b, s.Container), t.addPod(b, s.Container, s.mappings()))
		}
		return err
	})
	errs := []error{bad, err}
	for _, s := range broken {
		errs = append(errs, letLocalhostReach(s.mappings()))
	}
	return true, errors.Join(errs...)
}

// broken returns the pods whose rules are not as they should be: all, if the chains that lead to them are not.
func (t table) broken(pods []state) ([]state, error) {
	whole, err := t.frameWhole()
	if err != nil || !whole {
		return pods, err
	}
	var out []state
	for _, s := range pods {
		whole, err := t.podWhole(s.Container, s.mappings())
		if err != nil {
			return nil, err
		}
		if !whole {
			out = append(out, s)
		}
	}
	return out, nil
}
