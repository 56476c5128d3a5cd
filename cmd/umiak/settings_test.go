package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// command runs a command line in this process.
func command(t *testing.T, argv ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"umiak"}, argv...), &out, &errs)
	return code, out.String(), errs.String()
}

// settingsFile writes a settings file into a folder of its own.
func settingsFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigCheck(t *testing.T) {
	path := settingsFile(t, "secrets-encryption: true\ntls-san: [a.example.net]\ndisable: [servicelbb]\n"+
		"token: hunter2-hunter2\n")
	code, out, errs := command(t, "config", "check", path)
	for _, want := range []string{"ignored", path + ":1: secrets-encryption has no effect: Secrets are always encrypted",
		"warning", "disable: servicelbb is neither", "traefik", "these settings can be used (read: " + path + ")"} {
		if code != 0 || errs != "" || !strings.Contains(out, want) {
			t.Errorf("%d, want %q in\n%s%s", code, want, out, errs)
		}
	}
	path = settingsFile(t, "docker: true\nnode-nam: a\ncluster-cidr: 10.42.0.0/16\nservice-cidr: 10.42.0.0/24\n")
	code, out, _ = command(t, "config", "check", "-o", "json", path)
	var rep struct{ Files, Mistakes, Warnings, WithoutEffect []string }
	if err := json.Unmarshal([]byte(out), &rep); err != nil || code != 1 || len(rep.Files) != 1 ||
		len(rep.Mistakes) != 3 || !strings.Contains(rep.Mistakes[0], ":1: docker: ") ||
		!strings.Contains(rep.Mistakes[1], "did you mean node-name?") ||
		!strings.Contains(rep.Mistakes[2], "overlaps cluster-cidr") {
		t.Errorf("%d %v\n%s", code, err, out)
	}
	code, out, _ = command(t, "config", "check", settingsFile(t, "# nothing\n"))
	if code != 0 || !strings.Contains(out, "has no settings") {
		t.Errorf("an empty file: %d\n%s", code, out)
	}
	if code, _, errs := command(t, "config", "check", "/does/not/exist.yaml"); code != 1 || errs != "" {
		t.Errorf("no file: %d %s", code, errs)
	}
	node := settingsFile(t, "server: https://192.0.2.1:6443\ntoken: hunter2-hunter2\ntls-san: [a]\n")
	code, out, _ = command(t, "config", "check", "--agent", node)
	if code != 0 || !strings.Contains(out, "a setting of servers") {
		t.Errorf("a node's: %d\n%s", code, out)
	}
}

func TestConfigShow(t *testing.T) {
	path := settingsFile(t, "token: hunter2-hunter2\netcd-snapshot-retention: 3\n"+
		"tls-san: [a.example.net, b.example.net]\n")
	for _, form := range [][]string{nil, {"-o", "json"}, {"-o", "yaml"}} {
		argv := append([]string{"config", "show", "--config", path, "--node-name", "n1"}, form...)
		code, out, errs := command(t, argv...)
		if code != 0 || strings.Contains(out, "hunter2") {
			t.Errorf("%v: %d %s\n%s", form, code, errs, out)
		}
		for _, want := range []string{path + ":2: etcd-snapshot-retention", "--node-name", "b.example.net", "set"} {
			if !strings.Contains(out, want) {
				t.Errorf("%v: want %q in\n%s", form, want, out)
			}
		}
		if len(form) > 0 && form[1] == "yaml" {
			if code, checked, _ := command(t, "config", "check", settingsFile(t, out)); code != 0 {
				t.Errorf("the output is no settings file: %s\n%s", checked, out)
			}
		}
	}
}

func TestConfigFromK3s(t *testing.T) {
	files, err := filepath.Glob("testdata/k3s/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		node := strings.Contains(string(raw), "# program: agent\n")
		if strings.HasSuffix(file, "two-names.yaml") {
			continue // it holds names of umiak, too
		}
		argv, check := []string{"config", "from-k3s"}, []string{"config", "check"}
		if node {
			argv, check = append(argv, "--agent"), append(check, "--agent")
		}
		code, out, errs := command(t, append(argv, file)...)
		if code != 0 || !strings.HasPrefix(out, "# Settings for umiak, translated by") {
			t.Errorf("%s: %d %s\n%s", file, code, errs, out)
			continue
		}
		code, checked, errs := command(t, append(check, settingsFile(t, out))...)
		if (code != 0 || strings.Contains(checked, "ignored")) && !strings.Contains(out, "# To be mended: ") {
			t.Errorf("%s: what it becomes is refused: %s%s\n%s", file, checked, errs, out)
		}
	}
	target := filepath.Join(t.TempDir(), "out.yaml")
	write := []string{"config", "from-k3s", "--write", target, "testdata/k3s/homelab.yaml"}
	if code, out, errs := command(t, write...); code != 0 || out != "" {
		t.Fatalf("%d %s %s", code, out, errs)
	}
	if st, err := os.Stat(target); err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st, err)
	}
	if code, _, errs := command(t, write...); code == 0 || !strings.Contains(errs, "exists") {
		t.Errorf("a second time: %d %s", code, errs)
	}
}

// TestSnapshotFlagsOfK3s: the flags of `k3s etcd-snapshot` are those of the settings.
func TestSnapshotFlagsOfK3s(t *testing.T) {
	config := settingsFile(t, "")
	for _, prefix := range []string{"--", "--etcd-"} {
		argv := []string{"snapshot", "schedule", "--config", config, prefix + "s3", prefix + "s3-bucket", "No_Bucket",
			prefix + "s3-access-key=id", prefix + "s3-secret-key=hidden-key", prefix + "snapshot-compress"}
		code, _, errs := command(t, argv...)
		if code == 0 || !strings.Contains(errs, `"No_Bucket" is not a bucket name`) || strings.Contains(errs, "hidden-key") {
			t.Errorf("%v: %d %s", argv, code, errs)
		}
	}
}
