// Package testns lets a test binary run in namespaces of its own: what its tests do to interfaces, rules and
// mounts ends with it, and nothing of the machine's can be touched by mistake.
//
// It is called from TestMain and nowhere else.
package testns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

const inside = "UMIAK_TEST_APART"

// Run calls run in a new network namespace, and in further new namespaces given as clone(2) flags, and
// returns what it returns: the binary starts itself again there. The whole process has to be in it, since
// what is tested opens sockets on any thread. Without root, run is called here, and tests that need more
// are to skip themselves.
func Run(run func() int, more ...uintptr) int {
	if os.Geteuid() != 0 || os.Getenv(inside) != "" {
		return run()
	}
	flags := uintptr(syscall.CLONE_NEWNET)
	for _, f := range more {
		flags |= f
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:noctx // go test has its own time limit
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about the thread
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "run in namespaces of its own:", err)
		return 1
	}
	return 0
}
