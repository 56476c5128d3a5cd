package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, body := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTermsBelow(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"LICENSE":                    "ours\r\n\r\n",
		"NOTICE.txt":                 "note",
		"license.go":                 "package p",
		"licensing.go":               "package p",
		"internal/xx/LICENSE.txt":    "theirs",
		"LICENSES/MIT.txt":           "not by its name",
		"vendor/a/LICENSE":           "counted by itself",
		"testdata/COPYING":           "never compiled",
		"_example/LICENSE":           "never compiled",
		"licenses.html":              "a page",
		"cmd/notice_response.go":     "package p",
		"third_party/forked/COPYING": "forked",
	})
	texts, err := termsBelow(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, x := range texts {
		names = append(names, x.File)
	}
	want := []string{"LICENSE", "NOTICE.txt", "internal/xx/LICENSE.txt", "third_party/forked/COPYING"}
	if !slices.Equal(names, want) {
		t.Errorf("found %q, want %q", names, want)
	}
	if texts[0].Body != "ours\n" {
		t.Errorf("text is %q", texts[0].Body)
	}
}

func TestTextTooLong(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"LICENSE": strings.Repeat("x", maxText+1)})
	if _, err := termsBelow(dir); err == nil {
		t.Error("a file of more than a mebibyte was taken for a licence")
	}
}

// The test program itself is of this module and of Go; it stands for a program.
func testProgram(t *testing.T) program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	programs, err := readPrograms([]string{"umiak=" + self})
	if err != nil {
		t.Fatal(err)
	}
	p := programs[0]
	if p.Go == "" || len(p.Sum) != 64 {
		t.Fatalf("read %+v", p)
	}
	return p
}

func TestLicensed(t *testing.T) {
	p := testProgram(t)
	p.Modules = []module{{Import: "k8s.io/api", Path: "k8s.io/api", Version: linkedVersion(t, "k8s.io/api")}}
	dir := t.TempDir()
	write(t, dir, map[string]string{"libx@1.0/copyright": "LGPL", "libx@1.0/LGPL-2.1": "text"})
	libraries, err := readLibraries([]string{dir, dir})
	if err != nil {
		t.Fatal(err)
	}
	parts, err := licensed(t.Context(), []program{p}, libraries)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := writeLicenses(&b, parts); err != nil {
		t.Fatal(err)
	}
	got := b.String()
	for _, want := range []string{"Umiak: 1 (LICENSE)\n", "Go and its standard library ", "\nk8s.io/api v0.",
		"libx 1.0: ", "(LGPL-2.1)"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%.600s", want, got)
		}
	}
	if strings.Count(got, "\nlibx 1.0: ") != 1 {
		t.Error("a library of two architectures is listed twice")
	}

	p.Modules[0].Version = "v0.0.1"
	if _, err := licensed(t.Context(), []program{p}, nil); err == nil ||
		!strings.Contains(err.Error(), "build the programs again") {
		t.Errorf("a program of another go.mod: %v", err)
	}
	write(t, dir, map[string]string{"bare@2/README": "nothing"})
	libraries, err = readLibraries([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	p.Modules = nil
	if _, err := licensed(t.Context(), []program{p}, libraries); err == nil ||
		!strings.Contains(err.Error(), "bare 2") {
		t.Errorf("a library without a licence: %v", err)
	}
}

func linkedVersion(t *testing.T, path string) string {
	t.Helper()
	v, err := output(t.Context(), "go", "list", "-m", "-f", "{{with .Replace}}{{.Version}}{{else}}{{.Version}}{{end}}",
		path)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestWriteLicensesOnce(t *testing.T) {
	parts := []part{
		{Name: "b", Version: "v1", Texts: []text{{"LICENSE", "same\n"}}},
		{Name: "Umiak", Texts: []text{{"LICENSE", "own\n"}}},
		{Name: "a", Version: "v2", Texts: []text{{"COPYING", "same\n"}, {"NOTICE", "note\n"}}},
	}
	var b bytes.Buffer
	if err := writeLicenses(&b, parts); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "same\n"); n != 1 {
		t.Errorf("the same text stands there %d times", n)
	}
	if !strings.Contains(b.String(), "\nUmiak: 1 (LICENSE)\na v2: 2 (COPYING), 3 (NOTICE)\nb v1: 2 (LICENSE)\n") {
		t.Errorf("list:\n%s", b.String())
	}
}

func TestSBOM(t *testing.T) {
	programs := []program{
		{Name: "umiak", Sum: "aa", Go: "go1.26.8", Main: module{Path: ours}, Modules: []module{
			{Import: "x.io/A", Path: "x.io/A", Version: "v1.0.0+incompatible", Sum: "h1:x"},
			{Import: "x.io/other", Path: "x.io/A", Version: "v1.0.0+incompatible", Sum: "h1:x"},
		}},
		{Name: "runc", Sum: "bb", Go: "go1.26.8", Main: module{Import: "r", Path: "r", Version: "v1.5.2"}},
	}
	var b bytes.Buffer
	if err := writeSBOM(&b, "umiak", "v1+umiak1", programs,
		[]library{{Name: "libseccomp", Version: "2.5.4-1+deb12u1"}}); err != nil {
		t.Fatal(err)
	}
	var got bom
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	refs := map[string]bool{got.Metadata.Component.Ref: true}
	for _, c := range got.Components {
		if refs[c.Ref] {
			t.Errorf("%s is there twice", c.Ref)
		}
		refs[c.Ref] = true
	}
	for _, d := range got.Dependencies {
		for _, to := range append(d.DependsOn, d.Ref) {
			if !refs[to] {
				t.Errorf("%s needs %s, which is no component", d.Ref, to)
			}
		}
	}
	for _, want := range []string{"pkg:golang/x.io/a@v1.0.0%2Bincompatible",
		"pkg:deb/debian/libseccomp@2.5.4-1%2Bdeb12u1", "pkg:golang/r@v1.5.2", "pkg:golang/std@1.26.8"} {
		if !refs[want] {
			t.Errorf("%s is not there:\n%s", want, b.String())
		}
	}
}

func TestRunRefuses(t *testing.T) {
	for _, args := range [][]string{nil, {"licenses"}, {"sbom", "-o", "f"}, {"sbom", "-o", "f", "noname"},
		{"sbom", "-o", "f", "x=/dev/null"}, {"other", "-o", "f", "x"}} {
		if err := run(t.Context(), &bytes.Buffer{}, args); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
}
