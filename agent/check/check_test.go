package check

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/layout"
)

func TestRunSaysSomethingAboutEverything(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	results := Run(context.Background(), Config{Dirs: layout.Dirs{Data: dir + "/data", Run: dir + "/run"}})
	var text bytes.Buffer
	if err := Print(&text, results); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", text.String())
	for _, want := range []string{"kernel", "cgroups", "overlayfs", "network", "forwarding", "memory", "disk space"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("nothing about %s", want)
		}
	}
	for _, r := range results {
		if r.Name == "" || r.Detail == "" || r.State == Missing && r.Fix == "" {
			t.Errorf("unhelpful: %+v", r)
		}
	}
	if l, _ := os.ReadDir(dir); len(l) != 0 {
		t.Errorf("left behind: %v", l)
	}
	var raw bytes.Buffer
	if err := PrintJSON(&raw, results); err != nil {
		t.Fatal(err)
	}
	var back struct {
		Fit    bool
		Checks []Result
	}
	if err := json.Unmarshal(raw.Bytes(), &back); err != nil || len(back.Checks) != len(results) ||
		back.Fit != Fit(results) {
		t.Errorf("%v: %s", err, raw.String())
	}
}

func TestMemoryFix(t *testing.T) {
	const file = "/boot/firmware/cmdline.txt"
	for booted, lines := range map[string][2]string{
		"root=/dev/mmcblk0p2 rootwait": {"root=/dev/mmcblk0p2 rootwait\n",
			"sed -i '1s/$/ cgroup_enable=memory cgroup_memory=1/' " + file + " and reboot"},
		"quiet":                        {"quiet cgroup_enable=memory cgroup_memory=1\n", "reboot: "},
		"quiet splash":                 {"quiet splash\ncgroup_enable=memory\n", "make " + file + " one line"},
		"quiet cgroup_enable=memory\n": {"quiet cgroup_enable=memory\n", "use a kernel with CONFIG_MEMCG"},
	} {
		if got := memoryFix(booted, file, lines[0]); !strings.HasPrefix(got, lines[1]) {
			t.Errorf("booted with %q, file %q: %s", booted, lines[0], got)
		}
	}
	if got := memoryFix("quiet", "", ""); got != "add cgroup_enable=memory to the kernel's command line and reboot" {
		t.Error(got)
	}
}

func TestParseRelease(t *testing.T) {
	for in, want := range map[string][2]int{"6.18.3-amd64": {6, 18}, "5.4": {5, 4}, "4.19+": {4, 19}, "": {0, 0}} {
		if a, b := parseRelease(in); a != want[0] || b != want[1] {
			t.Errorf("%q: %d.%d", in, a, b)
		}
	}
}
