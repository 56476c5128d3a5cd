package containerd

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// runc is the name of the built-in runtime, and of its handler for RuntimeClasses.
const runc = "runc"

// otherRuntimes are the programs of the runtimes that take runc's place below its shim, by their names.
var otherRuntimes = map[string]string{"crun": "crun", "youki": "youki", "nvidia": "nvidia-container-runtime"}

// runtimeFolders are searched for runtimes after PATH, which is short in services: the NVIDIA operator installs there.
var runtimeFolders = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/bin", "/usr/local/nvidia/toolkit"}

// FindRuntime returns the path of the program of a runtime, "" for runc, which is built in.
func FindRuntime(name string) (string, error) {
	if name == "" || name == runc {
		return "", nil
	}
	program := otherRuntimes[name]
	if program == "" {
		return "", fmt.Errorf("default-runtime: there is no runtime %q", name)
	}
	path, err := exec.LookPath(program)
	for _, dir := range runtimeFolders {
		if err != nil && !errors.Is(err, exec.ErrDot) {
			path, err = exec.LookPath(filepath.Join(dir, program))
		}
	}
	if err != nil {
		return "", fmt.Errorf("find the program of default-runtime %s: there is no %s on PATH or in %s: install it, or leave default-runtime out",
			name, program, strings.Join(runtimeFolders, ", "))
	}
	return path, nil
}

// runtimes returns the part of the configuration that names the OCI runtimes. Each is a handler for RuntimeClasses too.
func (c Config) runtimes(s settings) map[string]any {
	handlers := map[string]any{runc: c.handler(runc, c.Programs.Runc)}
	name := runc
	if s.runtime != "" {
		name = c.Runtime
		handlers[name] = c.handler(name, s.runtime)
	}
	return map[string]any{"default_runtime_name": name, "runtimes": handlers}
}

// handler describes one runtime below runc's shim.
func (c Config) handler(name, program string) map[string]any {
	return map[string]any{
		"runtime_type": "io.containerd.runc.v2",
		"runtime_path": c.Programs.Shim,
		"sandboxer":    "podsandbox",
		// ensurePause creates the image; its name resolves to no registry.
		"disable_pause_image_pull": true,
		"options": map[string]any{
			"BinaryName":    program,
			"Root":          filepath.Join(c.Dirs.ContainerdState(), name),
			"SystemdCgroup": c.SystemdCgroup,
			"ShimCgroup":    c.ShimCgroup,
		},
	}
}
