package repotest

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the lists that are checked in anew (and fail)")

const root = "../.."

// goFiles parses every Go file of the module, with comments. The result is keyed by folder and path.
func goFiles(t *testing.T) map[string]map[string]*ast.File {
	t.Helper()
	out := map[string]map[string]*ast.File{}
	for _, p := range tracked(t, "*.go") {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, p), nil,
			parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Dir(p)
		if out[dir] == nil {
			out[dir] = map[string]*ast.File{}
		}
		out[dir][p] = f
	}
	return out
}

// tracked lists the files that git knows or would take, so that build products do not count.
func tracked(t *testing.T, patterns ...string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", append([]string{"ls-files", "-z", "--cached", "--others",
		"--exclude-standard", "--"}, patterns...)...)
	cmd.Dir = root
	raw, err := cmd.Output()
	if err != nil {
		t.Skipf("not a git checkout: %v", err)
	}
	var out []string
	for p := range strings.SplitSeq(string(raw), "\x00") {
		if _, err := os.Stat(filepath.Join(root, p)); p != "" && err == nil {
			out = append(out, p)
		}
	}
	return out
}

func TestEveryPackageIsDocumentedOnce(t *testing.T) {
	for dir, files := range goFiles(t) {
		var docs []string
		pkg := ""
		for p, f := range files {
			if strings.HasSuffix(p, "_test.go") {
				continue
			}
			pkg = f.Name.Name
			if f.Doc != nil && !strings.HasPrefix(f.Doc.List[0].Text, "//go:") {
				docs = append(docs, p)
				begin := "Package " + pkg + " "
				if pkg == "main" {
					begin = "Command " + filepath.Base(dir)
				}
				if !strings.HasPrefix(strings.TrimSpace(f.Doc.Text()), begin) && pkg != "main" {
					t.Errorf("%s: the comment should begin with %q", p, begin)
				}
			}
		}
		if pkg != "" && len(docs) != 1 {
			t.Errorf("%s has %d package comments, want one: %v", dir, len(docs), docs)
		}
	}
}

// forbidden lists the imports that folders must not have, each with its reason.
var forbidden = []struct{ dir, imports, reason string }{
	{"agent", "github.com/umiak-io/umiak/server", "a node is its own program; the server only starts one"},
	{"agent", "github.com/umiak-io/umiak/datastore", "a node keeps no cluster state"},
	{"datastore", "github.com/umiak-io/umiak/server", "the store does not know who uses it"},
	{"datastore", "github.com/umiak-io/umiak/agent", "the store does not know who uses it"},
	{"internal", "github.com/umiak-io/umiak/server", "internal/ is what both sides share"},
	{"internal", "github.com/umiak-io/umiak/agent", "internal/ is what both sides share"},
	{"e2e", "github.com/umiak-io/umiak/server", "what is tested is the binary"},
	{"e2e", "github.com/umiak-io/umiak/agent", "what is tested is the binary"},
	{"e2e", "k8s.io/kubernetes", "test binaries stay small: client-go is enough"},
	{"internal/lifecycle", "github.com/umiak-io", "it stands below everything"},
	{"cmd/umiak-agent", "k8s.io/kubectl", "the small binary stays small"},
}

func TestImports(t *testing.T) {
	for dir, files := range goFiles(t) {
		for p, f := range files {
			for _, imp := range f.Imports {
				path := strings.Trim(imp.Path.Value, `"`)
				for _, r := range forbidden {
					if under(dir, r.dir) && under(path, r.imports) && (!forTests(dir, p) || under(dir, "e2e") &&
						!strings.HasSuffix(p, "_test.go")) {
						t.Errorf("%s imports %s: %s", p, path, r.reason)
					}
				}
				if under(path, "github.com/umiak-io/umiak/cmd") && !under(dir, "cmd") ||
					under(path, "github.com/umiak-io/umiak/e2e") && !under(dir, "e2e") {
					t.Errorf("%s imports %s, which is for nobody to import", p, path)
				}
				if under(path, "github.com/umiak-io/umiak/internal/testing") && !forTests(dir, p) {
					t.Errorf("%s imports %s, which is for tests alone", p, path)
				}
			}
		}
	}
}

// forTests reports whether a file is not part of the programs that users run: tests, their helpers and the benchmarks.
func forTests(dir, file string) bool {
	return strings.HasSuffix(file, "_test.go") || under(dir, "internal/testing") || under(dir, "e2e") ||
		under(dir, "agent/dataplane/proxy/bench")
}

func under(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// TestNobodyElseEndsTheProcess checks that only main packages end the process: the commands, and the other programs
// of a bundle or a test image.
func TestNobodyElseEndsTheProcess(t *testing.T) {
	ends := map[string][]string{"os": {"Exit"}, "log": {"Fatal", "Fatalf", "Fatalln", "Panic", "Panicf"},
		"klog": {"Fatal", "Fatalf", "Exit", "Exitf", "FlushAndExit"}, "logrus": {"Fatal", "Fatalf"},
		"syscall": {"Exit"}}
	for _, files := range goFiles(t) {
		for p, f := range files {
			if f.Name.Name == "main" || strings.HasSuffix(p, "_test.go") {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); ok && slices.Contains(ends[x.Name], sel.Sel.Name) {
					t.Errorf("%s calls %s.%s; return an error instead", p, x.Name, sel.Sel.Name)
				}
				return true
			})
		}
	}
}

func TestNoInitFunctions(t *testing.T) {
	for _, files := range goFiles(t) {
		for p, f := range files {
			if strings.HasSuffix(p, "_test.go") {
				continue
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name == "init" && fn.Recv == nil {
					t.Errorf("%s has an init function: effects belong where they are asked for", p)
				}
			}
		}
	}
}

type goMod struct {
	Go      string
	Require []struct{ Path, Version string }
	Replace []struct {
		Old struct{ Path, Version string }
		New struct{ Path, Version string }
	}
}

// TestKubernetesIsOneVersion checks that the modules of Kubernetes have one version and that all of them are
// replaced, as its go.mod does with folders: a module without a replacement would be used in another version.
func TestKubernetesIsOneVersion(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json")
	cmd.Dir = root
	raw, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var m goMod
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	k8s := ""
	for _, r := range m.Require {
		if r.Path == "k8s.io/kubernetes" {
			k8s = r.Version
		}
	}
	if k8s == "" {
		t.Fatal("k8s.io/kubernetes is not required")
	}
	want := strings.Replace(k8s, "v1.", "v0.", 1)
	replaced := map[string]string{}
	for _, r := range m.Replace {
		replaced[r.Old.Path] = r.New.Version
		if r.Old.Path == r.New.Path && strings.HasPrefix(r.Old.Path, "k8s.io/") && r.New.Version != want {
			t.Errorf("%s is replaced with %s, want %s", r.Old.Path, r.New.Version, want)
		}
		if strings.HasPrefix(r.New.Path, ".") || strings.HasPrefix(r.New.Path, "/") {
			t.Errorf("%s is replaced with a folder", r.Old.Path)
		}
	}
	cmd = exec.CommandContext(t.Context(), "go", "mod", "download", "-json", "k8s.io/kubernetes@"+k8s)
	cmd.Dir = root
	raw, err = cmd.Output()
	if err != nil {
		t.Skipf("no module cache and no proxy: %v", err)
	}
	var d struct{ GoMod string }
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	theirs, err := os.ReadFile(d.GoMod)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range regexp.MustCompile(`(?m)^\s*(k8s\.io/\S+) => \./staging`).FindAllStringSubmatch(string(theirs),
		-1) {
		if replaced[g[1]] == "" {
			t.Errorf("%s is not replaced with %s", g[1], want)
		}
	}
}

func TestScripts(t *testing.T) {
	checker, err := exec.LookPath("shellcheck")
	if err != nil {
		t.Log("shellcheck is not installed; scripts/test lint installs it")
	}
	n := 0
	for _, p := range tracked(t, "scripts", ".ci", "install.sh", "*.sh") {
		raw, err := os.ReadFile(filepath.Join(root, p))
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := bytes.Cut(raw, []byte("\n"))
		if !bytes.HasPrefix(first, []byte("#!")) {
			continue // sourced by others
		}
		n++
		if info, err := os.Stat(filepath.Join(root, p)); err != nil || info.Mode()&0o111 == 0 &&
			under(filepath.Dir(p), "scripts") {
			t.Errorf("%s is not executable", p)
		}
		if checker == "" || !bytes.Contains(first, []byte("sh")) {
			continue
		}
		cmd := exec.CommandContext(t.Context(), checker, "-S", "warning", "-x", "-P", "SCRIPTDIR", p)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s", out)
		}
		if under(filepath.Dir(p), "scripts") && !bytes.Contains(raw, []byte("--help")) {
			t.Errorf("%s has no --help", p)
		}
	}
	if n == 0 {
		t.Error("no scripts were found")
	}
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

func TestLinksOfDocsLeadSomewhere(t *testing.T) {
	for _, p := range tracked(t, "*.md") {
		raw, err := os.ReadFile(filepath.Join(root, p))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(raw), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			file := filepath.Join(root, filepath.Dir(p), target)
			if target == "" {
				file = filepath.Join(root, p)
			}
			text, err := os.ReadFile(file)
			if errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s links to %s, which is not there", p, m[1])
			} else if anchor != "" && err == nil && !slices.Contains(anchors(string(text)), anchor) {
				t.Errorf("%s links to %s, and there is no such heading", p, m[1])
			}
		}
	}
}

// anchors returns the anchors of the headings of a page, as GitHub creates them.
func anchors(md string) []string {
	var out []string
	for line := range strings.Lines(md) {
		h := strings.TrimLeft(line, "#")
		if h == line || !strings.HasPrefix(h, " ") {
			continue
		}
		a := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(strings.TrimSpace(h)), "")
		out = append(out, strings.ReplaceAll(a, " ", "-"))
	}
	return out
}

// TestWhatTheAgentLinks compares the packages that the agent links with a recorded list, so that a change shows in
// review: the agent must be small and safe to run on every machine.
func TestWhatTheAgentLinks(t *testing.T) {
	at, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	overlay := t.TempDir() // with it, scripts/build makes upstream's crictl a package
	generate := exec.CommandContext(t.Context(), "go", "run", "./agent/runtime/crictl/generate", at, overlay)
	generate.Dir = root
	if out, err := generate.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), "go", "list", "-overlay", filepath.Join(overlay, "overlay.json"), "-deps", "-f",
		"{{with .Module}}{{.Path}}{{end}}", "./cmd/umiak-agent")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	raw, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]bool{}
	for m := range strings.FieldsSeq(string(raw)) {
		set[m] = true
	}
	for _, bad := range []string{"modernc.org/sqlite", "github.com/k3s-io/kine", "go.etcd.io/etcd/server/v3"} {
		if set[bad] {
			t.Errorf("the agent links %s", bad)
		}
	}
	got := strings.Join(slices.Sorted(maps.Keys(set)), "\n") + "\n"
	golden(t, "testdata/agent-modules.txt", got)
}

// golden compares text with a file that is checked in. With -update it writes the file and fails.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(got),
			0o644)); err != nil {
			t.Fatal(err)
		}
		t.Fatalf("%s was written anew; look at it and run without -update", file)
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	have, had := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	var diff strings.Builder
	for _, l := range have {
		if !slices.Contains(had, l) {
			_, _ = fmt.Fprintln(io.Writer(&diff), "+", l)
		}
	}
	for _, l := range had {
		if !slices.Contains(have, l) {
			_, _ = fmt.Fprintln(io.Writer(&diff), "-", l)
		}
	}
	t.Errorf("%s has changed; if that is meant: go test ./internal/repotest -update\n%s", file, diff.String())
}
