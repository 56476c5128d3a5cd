package reexec_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/umiak-io/umiak/internal/reexec"
)

// TestMain is also the program that executes itself again.
func TestMain(m *testing.M) {
	dir := os.Getenv("REEXEC_TEST_DIR")
	if dir == "" {
		os.Exit(m.Run())
	}
	s := reexec.Store{Dir: dir}
	text, err := s.KeepPanics()
	if err != nil {
		panic(err)
	}
	last, err := s.Last()
	switch {
	case err != nil:
		panic(err)
	case last == nil:
		if _, err := s.Save("kubelet", errors.New("cgroup is gone"), time.Now()); err != nil {
			panic(err)
		}
		panic(reexec.Exec(append(os.Environ(), "AGAIN=yes")))
	case last.Part == "kubelet":
		if err := reexec.TakeName(); err != nil {
			panic(err)
		}
		comm, err := os.ReadFile("/proc/self/comm")
		if err != nil {
			panic(err)
		}
		println(os.Getpid(), os.Getenv("AGAIN"), strings.TrimSpace(string(comm)), last.String())
		go func() { panic("in a goroutine of a library") }()
		select {}
	}
	println(last.String(), strings.Contains(text, "goroutine "))
}

func TestAProcessComesAgainAndSaysWhy(t *testing.T) {
	dir := t.TempDir()
	run := func() (string, int) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), "REEXEC_TEST_DIR="+dir)
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.Process.Pid
	}
	out, pid := run()
	line, rest, _ := strings.Cut(out, "\n")
	if f := strings.SplitN(line, " ", 4); len(f) != 4 || f[0] != fmt.Sprint(pid) || f[1] != "yes" ||
		f[2] != filepath.Base(os.Args[0])[:len(f[2])] || f[3] != "kubelet: cgroup is gone" ||
		!strings.Contains(rest, "panic: in a goroutine") {
		t.Errorf("process %d: %s", pid, out)
	}
	if out, _ := run(); out != "panic: in a goroutine of a library true\n" {
		t.Errorf("after the panic: %s", out)
	}
	s := reexec.Store{Dir: dir}
	if err := s.Forget(); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Last(); r != nil || err != nil {
		t.Errorf("%v %v", r, err)
	}
}

func TestCounting(t *testing.T) {
	s := reexec.Store{Dir: t.TempDir()}
	now := time.Now()
	for _, c := range []struct {
		part  string
		after time.Duration
		count int
		pause time.Duration
	}{
		{"kubelet", 0, 1, time.Second}, {"kubelet", time.Minute, 2, 2 * time.Second},
		{"containerd", time.Minute, 1, time.Second},
		{"containerd", time.Minute, 2, 2 * time.Second}, {"containerd", time.Minute, 3, 4 * time.Second},
		{"containerd", time.Hour, 1, time.Second},
	} {
		now = now.Add(c.after)
		r, err := s.Save(c.part, errors.New("x"), now)
		if err != nil || r.Count != c.count || r.Pause() != c.pause {
			t.Errorf("%+v: %+v %s %v", c, r, r.Pause(), err)
		}
	}
	if p := (reexec.Reason{Count: 100}).Pause(); p != 512*time.Second {
		t.Error(p)
	}
}
