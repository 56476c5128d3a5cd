package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestDetectCgroup(t *testing.T) {
	c, err := DetectCgroup("/")
	if err != nil {
		t.Skip(err)
	}
	if c.Version != 1 && c.Version != 2 || c.Driver != DriverCgroupfs && c.Driver != DriverSystemd ||
		!slices.IsSorted(c.Controllers) {
		t.Errorf("%+v", c)
	}
	if c.Version == 1 && c.Driver != DriverCgroupfs {
		t.Errorf("systemd does not rule cgroup v1's controllers for us: %+v", c)
	}
	if other, err := DetectCgroup("/nodes/one"); err != nil || other.Driver != DriverCgroupfs {
		t.Errorf("a root outside systemd's tree: %+v, %v", other, err)
	}
}

func TestEnabledV1(t *testing.T) {
	got := enabledV1([]byte("#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t2\t10\t1\nmemory\t3\t5\t0\npids\t4\t1\t1\nbad line\n"))
	if !slices.Equal(got, []string{"cpu", "pids"}) {
		t.Errorf("%v", got)
	}
	if m := (Cgroup{Controllers: got}).Missing(); !slices.Equal(m, []string{"cpuset", "memory"}) {
		t.Errorf("%v", m)
	}
}

func TestPodCgroups(t *testing.T) {
	for _, c := range []struct {
		cg   Cgroup
		root string
		want string
	}{
		{Cgroup{Version: 2, Driver: DriverSystemd}, "/", "/sys/fs/cgroup/kubepods.slice"},
		{Cgroup{Version: 2, Driver: DriverCgroupfs}, "/node", "/sys/fs/cgroup/node/kubepods"},
		{Cgroup{Version: 2, Driver: DriverSystemd}, "/edge.slice", "/sys/fs/cgroup/edge.slice/edge-kubepods.slice"},
	} {
		if got := PodCgroups(c.cg, c.root); !slices.Equal(got, []string{c.want}) {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestCapabilitiesAreThoseOfTheProcess(t *testing.T) {
	c, err := DetectCapabilities()
	if err != nil {
		t.Fatal(err)
	}
	if root := os.Geteuid() == 0 && !InUserNamespace(); root != c.Has(CapNetAdmin) {
		t.Errorf("root outside of user namespaces: %v, capabilities %v", root, c)
	}
	if (Capabilities{CapSysAdmin}).Has(CapNetAdmin) {
		t.Error("a capability that is not in the set is reported as effective")
	}
}

// TestKernelSettings: what may be changed is fine, unless the kubelet must not change it.
func TestKernelSettings(t *testing.T) {
	sys := t.TempDir()
	for name, value := range kubeletValues {
		file := filepath.Join(sys, strings.ReplaceAll(name, ".", "/"))
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755),
			os.WriteFile(file, fmt.Appendln(nil, value), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(trySysctls(sys), checkSysctls(sys)); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(sys, "kernel/panic"), []byte("0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := trySysctls(sys); err != nil {
		t.Error(err)
	}
	if err := checkSysctls(sys); err == nil || !strings.Contains(err.Error(), "set kernel.panic=10 in /etc/sysctl.d") {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(sys, "kernel/panic")); err != nil {
		t.Fatal(err)
	}
	for _, try := range []func(string) error{trySysctls, checkSysctls} {
		if err := try(sys); err == nil || !strings.Contains(err.Error(), "set kernel.panic=10 ") {
			t.Error(err)
		}
	}
}

func TestShimCgroup(t *testing.T) {
	for _, c := range []struct {
		name   string
		cgroup Cgroup
		root   string
		have   []string // below the mount
		want   string
		made   []string
	}{
		{"v2", Cgroup{Version: 2, Driver: DriverCgroupfs}, "/", nil, "/umiak-shims", []string{"umiak-shims"}},
		{"v2 with a root", Cgroup{Version: 2, Driver: DriverCgroupfs}, "/a/b", []string{"a"}, "/a/b/umiak-shims",
			[]string{"a/b", "a/b/umiak-shims"}},
		{"v2 with systemd", Cgroup{Version: 2, Driver: DriverSystemd}, "/edge.slice", nil, "/umiak-shims",
			[]string{"umiak-shims"}},
		{"v1", Cgroup{Version: 1, Driver: DriverCgroupfs}, "/", []string{"memory", "systemd"}, "/umiak-shims",
			[]string{"systemd/umiak-shims"}},
		{"hybrid", Cgroup{Version: 1, Driver: DriverCgroupfs}, "/", []string{"memory", "systemd", "unified"}, "", nil},
		{"v1 that systemd does not use", Cgroup{Version: 1, Driver: DriverCgroupfs}, "/", []string{"memory"}, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			mount := t.TempDir()
			for _, d := range c.have {
				if err := os.MkdirAll(filepath.Join(mount, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			j, err := openJournal(filepath.Join(t.TempDir(), "state"), "/proc/sys", "boot", "net")
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second time it is there
				got, err := shimCgroup(mount, c.cgroup, c.root, j)
				if err != nil || got != c.want {
					t.Fatalf("got %q, %v", got, err)
				}
			}
			var made []string
			for _, p := range j.State().Made[KindCgroup] {
				made = append(made, strings.TrimPrefix(p, mount+"/"))
			}
			if !slices.Equal(made, c.made) {
				t.Errorf("noted %v", made)
			}
		})
	}
}

// The empty v2 of a hybrid machine is one of the places where pods' cgroups are made, and so has to be cleaned up.
func TestPodCgroupsOfAHybridMachine(t *testing.T) {
	const v2 = CgroupMount + "/unified"
	if _, err := os.Stat(v2 + "/cgroup.procs"); err != nil {
		t.Skip("needs a hybrid machine")
	}
	if got := PodCgroups(Cgroup{Version: 1, Driver: DriverCgroupfs}, "/x"); !slices.Contains(got, v2+"/x/kubepods") {
		t.Errorf("got %q", got)
	}
}
