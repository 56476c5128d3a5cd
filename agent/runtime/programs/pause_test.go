package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/umiak-io/umiak/internal/testing/eventually"
)

// pauseProgram builds pause as scripts/build does, but for the flags that only make it smaller.
func pauseProgram(t *testing.T) string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("needs gcc")
	}
	bin := filepath.Join(t.TempDir(), "pause")
	if out, err := exec.Command(gcc, "-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie",
		"-fno-stack-protector", "-o", bin, "pause/pause.c").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

// As process 1 of a PID namespace, which gets no signal that it does not handle.
func TestPauseReapsAndEnds(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	bin := pauseProgram(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		// A child of process 1's that ends before pause is there, and one that is left by its parent later.
		cmd := exec.Command("/bin/sh", "-c", "sleep 0.2 & (sleep 0.3 &) ; exec "+bin)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pid := cmd.Process.Pid
		children := "/proc/" + strconv.Itoa(pid) + "/task/" + strconv.Itoa(pid) + "/children"
		eventually.Nil(t, "pause to reap its children", func() error {
			exe, _ := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
			left, err := os.ReadFile(children)
			if err == nil && (!strings.HasSuffix(exe, "/pause") || len(left) > 0) {
				err = fmt.Errorf("%s has the children %q", exe, left)
			}
			return err
		})
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("after %v: %v", sig, err)
		}
	}
}
