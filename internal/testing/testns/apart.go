// Package testns runs a test binary in its own namespaces, so that changes of its tests to interfaces, rules and
// mounts end with it and cannot affect the machine.
//
// Only TestMain functions call it. It imports nothing of umiak.
package testns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// inside is the variable that is set in the process inside the namespaces.
const inside = "UMIAK_TEST_APART"

// Run calls run in a new network namespace, and in further new namespaces given as clone(2) flags, and returns its
// result. It starts the binary again there, since the code under test opens sockets on any thread, so that the whole
// process must be in the namespaces. Without root, it calls run in this process, and tests that need root must skip
// themselves.
func Run(run func() int, more ...uintptr) int {
	if os.Geteuid() != 0 || os.Getenv(inside) != "" {
		return run()
	}
	flags := uintptr(syscall.CLONE_NEWNET)
	for _, f := range more {
		flags |= f
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:noctx // go test has its own timeout
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig refers to the thread
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
