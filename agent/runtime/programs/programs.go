package programs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Programs are the paths of what a node runs. They stay the same over upgrades (Unpack's folder
// "current" is a link to the newest content), so containers that were made by an older umiak go on with
// programs that exist.
type Programs struct {
	Runc   string // the OCI runtime
	Shim   string // containerd-shim-runc-v2
	CNIDir string // folder of the CNI plugins, a file each
	Pause  string // process 1 of every pod
}

// Names of the programs in the bundle and on PATH.
const (
	runcName  = "runc"
	shimName  = "containerd-shim-runc-v2"
	pauseName = "pause"
	cniName   = "cni"
)

// plugins are the CNI plugins that a node needs.
var plugins = []string{"bridge", "host-local", "loopback", "bandwidth", "portmap"}

// Embedded says whether the binary carries the programs.
func Embedded() bool { return len(archive) > 0 }

// Unpack makes the programs available under dir and returns where they are. It costs milliseconds when
// they are there already. Without an embedded bundle they are looked up on PATH and dir is not touched.
func Unpack(ctx context.Context, dir string) (Programs, error) {
	if !Embedded() {
		return lookup(exec.LookPath, []string{"/opt/cni/bin", "/usr/lib/cni"})
	}
	s := store{dir: dir, bootID: bootID(), inUse: inUse}
	if err := s.install(ctx, archiveID, archive); err != nil {
		return Programs{}, fmt.Errorf("unpack the embedded programs: %w", err)
	}
	return under(filepath.Join(dir, current)), nil
}

// under returns the programs of an unpacked bundle.
func under(dir string) Programs {
	return Programs{
		Runc:   filepath.Join(dir, runcName),
		Shim:   filepath.Join(dir, shimName),
		CNIDir: filepath.Join(dir, cniName),
		Pause:  filepath.Join(dir, pauseName),
	}
}

// lookup finds the programs of a machine that has them installed, and names all that it has not.
func lookup(find func(string) (string, error), cniDirs []string) (Programs, error) {
	var errs []error
	path := func(name, pkg string) string {
		p, err := find(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("no %s on PATH (%s)", name, pkg))
			return ""
		}
		if p, err = filepath.Abs(p); err != nil {
			errs = append(errs, err)
		}
		return p
	}
	out := Programs{
		Runc:  path(runcName, "Debian: runc"),
		Shim:  path(shimName, "Debian: containerd"),
		Pause: path(pauseName, "scripts/build makes it"),
	}
	if p, err := find(plugins[0]); err == nil {
		cniDirs = append([]string{filepath.Dir(p)}, cniDirs...)
	}
	var missing string
	for _, d := range cniDirs {
		if missing = firstMissing(d); missing == "" {
			out.CNIDir = d
			break
		}
	}
	if out.CNIDir == "" {
		errs = append(errs, fmt.Errorf("no CNI plugin %s on PATH or in %v (Debian: containernetworking-plugins)", missing, cniDirs))
	}
	if len(errs) > 0 {
		return Programs{}, fmt.Errorf("this umiak was built without its bundle of programs (scripts/build embeds them): %w", errors.Join(errs...))
	}
	return out, nil
}

// firstMissing is the first plugin that is not in the folder.
func firstMissing(dir string) string {
	for _, name := range plugins {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
			return name
		}
	}
	return ""
}
