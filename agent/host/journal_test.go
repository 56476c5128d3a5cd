package host

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// sys is a stand-in for /proc/sys.
func sys(t *testing.T, values map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, v := range values {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(v+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func value(t *testing.T, dir, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestWhatWasThereBeforeComesBack(t *testing.T) {
	s := sys(t, map[string]string{"net/ipv4/ip_forward": "0", "kernel/panic": "0",
		"net/ipv4/conf/eth0.1/rp_filter": "2", "vm/overcommit_memory": "1"})
	path := filepath.Join(t.TempDir(), "agent", "state.json")
	j, err := openJournal(path, s, "boot-1", "net-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.Set("net.ipv4.ip_forward", "1"), j.Set("net.ipv4.conf.eth0/1.rp_filter", "0"),
		j.RecordSysctls("kernel.panic", "no.such"), j.Set("vm.overcommit_memory", "1")); err != nil {
		t.Fatal(err)
	}
	if value(t, s, "net/ipv4/ip_forward") != "1" {
		t.Error("not set")
	}
	// Another start of the same boot must not take the changed values for the original ones.
	_ = os.WriteFile(filepath.Join(s, "kernel/panic"), []byte("10\n"), 0o644)
	if j, err = openJournal(path, s, "boot-1", "net-1"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.RecordSysctls("kernel.panic", "net.ipv4.ip_forward"), j.Made(KindInterface, "cni0", "cni0"),
		j.Made(KindInterface, "cni0")); err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	var told []string
	if err := j.Restore(func(n, v string) { told = append(told, n+"="+v) }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(told, []string{"kernel.panic=0", "net.ipv4.conf.eth0/1.rp_filter=2", "net.ipv4.ip_forward=0"}) {
		t.Errorf("restored %v", told)
	}
	if value(t, s, "net/ipv4/ip_forward") != "0" || value(t, s, "net/ipv4/conf/eth0.1/rp_filter") != "2" ||
		value(t, s, "kernel/panic") != "0" {
		t.Error("not restored")
	}
	if got := j.State(); len(got.Made[KindInterface]) != 1 || len(got.Sysctls) != 0 {
		t.Errorf("%+v", got)
	}
	if err := j.Gone(KindInterface, "cni0"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("an empty journal is kept")
	}
}

func TestARebootMakesNotesVoid(t *testing.T) {
	s := sys(t, map[string]string{"net/ipv4/ip_forward": "0", "kernel/panic": "0"})
	path := filepath.Join(t.TempDir(), "state.json")
	fill := func() {
		t.Helper()
		j, err := openJournal(path, s, "boot-1", "net-1")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(j.RecordSysctls("net.ipv4.ip_forward", "kernel.panic"), j.Made(KindInterface, "cni0"),
			j.Made(KindCgroup, CgroupMount+"/a"), j.Made(KindPath, "/var/log/containers")); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	j, err := openJournal(path, s, "boot-1", "net-2")
	if err != nil {
		t.Fatal(err)
	}
	if got := j.State(); len(got.Sysctls) != 1 || len(got.Made[KindInterface]) != 0 || len(got.Made[KindCgroup]) != 1 {
		t.Errorf("another network namespace: %+v", got)
	}
	if j, err = openJournal(path, s, "boot-2", "net-1"); err != nil {
		t.Fatal(err)
	}
	if got := j.State(); len(got.Sysctls) != 0 || len(got.Made[KindCgroup]) != 0 || len(got.Made[KindPath]) != 1 {
		t.Errorf("another boot: %+v", got)
	}
}

func TestASysctlThatIsRefusedIsNamed(t *testing.T) {
	j, err := openJournal(filepath.Join(t.TempDir(), "state.json"), sys(t, map[string]string{"kernel/panic": "0"}), "b",
		"n")
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Set("net.ipv4.ip_forward", "1"); err == nil || !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("got %v", err)
	}
	if _, err := Forward(j, true, false); err == nil {
		t.Fatal("pods without forwarding")
	}
}

func FuzzParseState(f *testing.F) {
	f.Add([]byte(`{"boot":"b","netns":"net:[1]","sysctls":{"net.ipv4.ip_forward":"0"},"made":{"cgroup":["/sys/fs/cgroup/x"],"interface":["cni0"],"path":["/var/log/containers"]}}`))
	f.Add([]byte(`{"made":{"path":["/"]}}`))
	f.Add([]byte(`{"made":{"cgroup":["/sys/fs/cgroup/../.."]}}`))
	f.Add([]byte(`{"sysctls":{"../../etc/passwd":"x"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := parseState(raw)
		if err != nil {
			if !errors.Is(err, ErrJournal) {
				t.Fatalf("%v", err)
			}
			return
		}
		j := &Journal{sys: "/proc/sys", state: s}
		for n := range s.Sysctls {
			if p := j.file(n); filepath.Clean(p) != p || len(p) <= len("/proc/sys/") ||
				p[:len("/proc/sys/")] != "/proc/sys/" {
				t.Fatalf("%q leads to %s", n, p)
			}
		}
		for _, k := range []Kind{KindCgroup, KindPath} {
			for _, p := range s.Made[k] {
				if filepath.Clean(p) != p || !filepath.IsAbs(p) || p == "/" || p == CgroupMount {
					t.Fatalf("%q", p)
				}
			}
		}
	})
}
