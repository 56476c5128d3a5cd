package manifest_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/umiak-io/umiak/internal/testing/golden"
	"github.com/umiak-io/umiak/manifests"
	"github.com/umiak-io/umiak/server/addons/manifest"
)

func print(objs []*unstructured.Unstructured) string {
	var out strings.Builder
	for _, o := range objs {
		b, err := yaml.Marshal(o.Object)
		if err != nil {
			panic(err)
		}
		out.WriteString("---\n" + string(b))
	}
	return out.String()
}

// TestGolden decodes each testdata/*.in and compares with the file of the same name with .out.
func TestGolden(t *testing.T) {
	golden.Walk(t, func(in string) string {
		objs, err := manifest.Decode([]byte(in))
		got := print(objs)
		if err != nil {
			got += "# error: " + err.Error() + "\n"
		}
		return got
	})
}

func TestBounds(t *testing.T) {
	for name, data := range map[string]string{
		"large": strings.Repeat("# x\n", manifest.MaxBytes/4+1),
		"many": strings.Repeat("{\"apiVersion\": v1, \"kind\": A, \"metadata\": {\"name\": a}}\n---\n",
			manifest.MaxObjects+1),
		"deep":     strings.Repeat(`{"apiVersion": v1, "kind": List, "items": [`, 9) + strings.Repeat("]}", 9),
		"laughs":   "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n",
		"not utf8": "a: \xff\xfe",
	} {
		begun := time.Now()
		if objs, err := manifest.Decode([]byte(data)); err == nil || len(objs) > 0 {
			t.Errorf("%s: taken", name)
		}
		if d := time.Since(begun); d > 5*time.Second {
			t.Errorf("%s: took %s", name, d)
		}
	}
}

func TestEmbedded(t *testing.T) {
	vars, err := manifests.Vars(manifests.Cluster{Domain: "cluster.local",
		DNS: []netip.Addr{netip.MustParseAddr("10.43.0.10"),
			netip.MustParseAddr("fd00::a")}})
	if err != nil {
		t.Fatal(err)
	}
	files, err := manifest.ReadEmbedded(manifests.FS, vars)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range files {
		objs, err := manifest.Decode(f.Data)
		if err != nil || len(objs) == 0 {
			t.Errorf("%s: %v", name, err)
		}
		for _, o := range objs {
			if o.GetKind() == "Service" {
				ips, _, err := unstructured.NestedStringSlice(o.Object, "spec", "clusterIPs")
				if err != nil || fmt.Sprint(ips) != "[10.43.0.10 fd00::a]" {
					t.Error(ips, err)
				}
			}
		}
	}
	if _, err := manifest.ReadEmbedded(fstest.MapFS{"a.yaml": {Data: []byte("${NOBODY}")}}, vars); err == nil ||
		!strings.Contains(err.Error(), "NOBODY") {
		t.Error(err)
	}
}

func TestReadDir(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().Add(-time.Hour)
	put := func(name, data string) {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(p, old, old); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range map[string]string{
		"a.yaml": "1", "b.yml": "2", "sub/deep/c.json": "3", "notes.txt": "", ".a.yaml.swp": "", ".hidden/x.yaml": "",
		"d.yaml~":      "",
		"skipped.yaml": "4", "skipped.skip": "", "a.yaml.skip": "", "embedded.skip": "", "twice.yaml": "",
		"twice.json": "", "New Name.yaml": "5",
	} {
		put(name, data)
	}
	if err := os.Symlink("a.yaml", filepath.Join(dir, "link.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(".", filepath.Join(dir, "circle")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "zero.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe.yaml"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "fresh.yaml"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(dir, "big.yaml")
	put("big.yaml", "")
	if err := os.Truncate(big, manifest.MaxBytes+1); err != nil {
		t.Fatal(err)
	}
	f, begun := manifest.NewFolder(dir), time.Now()
	if _, err := f.Read(begun); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "fresh.yaml"), []byte("half of"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := f.Read(begun.Add(manifest.Settle))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range manifest.Merge(map[string]manifest.File{"embedded": {Name: "embedded", ID: "embedded"},
		"fresh": {Name: "fresh"}}, s) {
		line := fmt.Sprintf("%s (%s) %q", f.Name, f.ID, f.Data)
		if f.Err != nil {
			line += " error"
		}
		if f.Skip {
			line += " skip"
		}
		got = append(got, line)
	}
	want := `New Name (` + manifest.ID("New Name") + `) "5"
a (a) "1" skip
b (b) "2"
big (big) "" error
embedded (embedded) "" skip
link (link) "1"
pipe (pipe) "" error
skipped (skipped) "4" skip
sub/deep/c (` + manifest.ID("sub/deep/c") + `) "3"
twice (twice) "" error
zero (zero) "" error`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	if s.Unsettled["fresh"] == "" || len(s.Unsettled) > 1 || len(s.Dirs) != 3 {
		t.Error(s.Unsettled, s.Dirs)
	}
}

func TestNames(t *testing.T) {
	seen := map[string]string{}
	for _, n := range []string{"a", "a/b", "a-b", "A", "a.b", "-", "…", strings.Repeat("x", 300),
		strings.Repeat("x", 41), ""} {
		id := manifest.ID(n)
		if prev, dup := seen[id]; dup {
			t.Errorf("%q and %q are both %s", prev, n, id)
		}
		seen[id] = n
		if len(id) > 40 || id == "" || strings.Trim(id, "-") != id {
			t.Errorf("%q is %q", n, id)
		}
	}
	for d, want := range map[string]bool{"dns": true, "dns.yaml": true, "sub/dns": true, "sub": false, "ns": false} {
		if manifest.Disabled("sub/dns", []string{"x", d}) != want {
			t.Errorf("--disable %s", d)
		}
	}
}

// FuzzDecode: nothing panics, and what is taken has what the API server's address needs.
func FuzzDecode(f *testing.F) {
	ins, _ := filepath.Glob("testdata/*.in")
	for _, in := range ins {
		b, err := os.ReadFile(in)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		objs, err := manifest.Decode(b)
		if err != nil {
			if len(objs) > 0 {
				t.Fatal("objects of a broken file")
			}
			return
		}
		for _, o := range objs {
			if o.GetName() == "" || o.GetKind() == "" || o.GetAPIVersion() == "" ||
				strings.ContainsAny(o.GetName()+o.GetNamespace(), "/%") {
				t.Fatalf("%#v", o.Object)
			}
			o.GetLabels()
			o.SetLabels(map[string]string{"a": "b"})
			if _, err := o.MarshalJSON(); err != nil {
				t.Fatal(err)
			}
			o.DeepCopy()
		}
	})
}
