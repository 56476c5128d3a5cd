package programs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Programs holds the absolute paths of the programs that a node runs. The paths stay the same across upgrades (Unpack's
// folder "current" is a link to the newest content), so containers that an older umiak created keep working.
type Programs struct {
	Runc   string // the OCI runtime
	Shim   string // containerd-shim-runc-v2
	CNIDir string // folder of the CNI plugins, one file each
	Pause  string // the process of every pod's sandbox container
}

// Names of the programs in the archive and on PATH.
const (
	runcName  = "runc"
	shimName  = "containerd-shim-runc-v2"
	pauseName = "pause"
	cniName   = "cni"
)

// plugins lists the CNI plugins that a node needs.
var plugins = []string{"bridge", "host-local", "loopback", "bandwidth", "portmap"}

// Embedded reports whether the binary contains the programs.
func Embedded() bool { return len(archive) > 0 }

// Unpack makes the programs available below dir and returns their paths. If they are there already, it takes
// milliseconds. Without an embedded archive it looks the programs up on PATH and does not touch dir.
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

// under returns the paths of the programs in an unpacked folder.
func under(dir string) Programs {
	return Programs{
		Runc:   filepath.Join(dir, runcName),
		Shim:   filepath.Join(dir, shimName),
		CNIDir: filepath.Join(dir, cniName),
		Pause:  filepath.Join(dir, pauseName),
	}
}

// lookup finds the programs on a machine that has them installed. The error names all that are missing.
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
		errs = append(errs, fmt.Errorf("no CNI plugin %s on PATH or in %v (Debian: containernetworking-plugins)",
			missing, cniDirs))
	}
	if len(errs) > 0 {
		return Programs{}, fmt.Errorf("this umiak was built without embedded programs (scripts/build embeds them): %w",
			errors.Join(errs...))
	}
	return out, nil
}

// firstMissing returns the first plugin that is not in the folder, "" if all are there.
func firstMissing(dir string) string {
	for _, name := range plugins {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
			return name
		}
	}
	return ""
}
