// Package crictl runs upstream's crictl, the command line tool of the container runtime interface, in umiak's process.
//
// Upstream's crictl is a program (package main of sigs.k8s.io/cri-tools) and cannot be imported. scripts/build makes a
// package of it with `go build -overlay`: package generate prepares the overlay, which replaces package upstream. A
// binary that was built without the overlay has no crictl and reports that.
//
// The package imports nothing else of umiak. The commands call it.
package crictl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/agent/runtime/crictl/upstream"
)

// configFile is the settings file that crictl reads by default.
const configFile = "/etc/crictl.yaml"

// Run runs crictl with the given arguments, without the program's name. The runtime is the one at socket unless the
// arguments name another. crictl reads its own arguments from os.Args and may end the process, so Run is for a process
// that does nothing else.
func Run(args []string, socket string) error {
	l := parse(args)
	if !l.endpoint {
		if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) && !l.local() {
			return fmt.Errorf("containerd of this node does not run: there is no %s; start umiak, or name another runtime "+
				"with --runtime-endpoint", socket)
		}
	}
	for name, value := range l.environment("unix://"+socket, configFile) {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	os.Args = append([]string{"crictl"}, args...)
	return upstream.Run()
}

// line is what Run has to know of a command line.
type line struct {
	endpoint bool // crictl's own flags, which stand before the command, name a runtime
	config   bool // they name a settings file
	info     bool // they ask for help or the version
	command  string
}

// parse reads crictl's own flags and the name of the command.
func parse(args []string) (l line) {
	i := 0
	for ; i < len(args) && strings.HasPrefix(args[i], "-") && args[i] != "--"; i++ {
		name, _, hasValue := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		switch name {
		case "runtime-endpoint", "r", "image-endpoint", "i":
			l.endpoint = true
		case "config", "c":
			l.config = true
		case "help", "h", "version", "v":
			l.info = true
		}
		if !hasValue && !switches[name] {
			i++ // the value
		}
	}
	if i < len(args) {
		l.command = args[i]
	}
	l.info = l.info || len(args) == 0 || slices.Contains(args, "--help") || slices.Contains(args, "-h")
	return l
}

// switches are crictl's own flags that take no value.
var switches = map[string]bool{
	"debug": true, "D": true, "enable-tracing": true, "help": true, "h": true, "version": true, "v": true,
}

// local reports whether the command works without a runtime.
func (l line) local() bool {
	return l.info || slices.Contains([]string{"completion", "config", "help", "h"}, l.command)
}

// environment returns the variables to set for crictl.
func (l line) environment(endpoint, config string) map[string]string {
	out := map[string]string{}
	if !l.endpoint {
		// These variables and the settings file may name another runtime of this host. A variable outranks the file.
		out["CONTAINER_RUNTIME_ENDPOINT"], out["IMAGE_SERVICE_ENDPOINT"] = endpoint, endpoint
	}
	if _, err := os.Stat(config); errors.Is(err, fs.ErrNotExist) && !l.config && l.command != "config" &&
		os.Getenv("CRI_CONFIG_FILE") == "" {
		out["CRI_CONFIG_FILE"] = os.DevNull // without a file, crictl warns at each call
	}
	return out
}
