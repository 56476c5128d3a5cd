package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// part is something that has licences of its own: a module, a library, the standard library, Umiak.
type part struct {
	Name, Version string
	Texts         []text
}

type text struct {
	File string // name within the part
	Body string
}

// The bound is far above the longest licence there is; a file beyond it is something else.
const maxText = 1 << 20

var (
	// Names of files that say under what terms something is given. Extensions of code are none of them.
	isTerms = regexp.MustCompile(`(?i)^(un)?(licen[sc]es?|copying|notices?|copyright|patents|authors)([._-][a-z0-9_.-]*)?$`)
	isCode  = regexp.MustCompile(`(?i)\.(go|s|c|h|js|ts|py|sh|json|ya?ml|html?|tmpl|tpl|mod|sum|golden|png|svg)$`)
	// A notice or a list of authors alone is no licence.
	isLicense = regexp.MustCompile(`(?i)^(un)?(licen[sc]e|copying|copyright)`)
)

// licensed finds the licence files of everything. It fails with the names of all that have none.
func licensed(ctx context.Context, programs []program, libraries []library) ([]part, error) {
	root, err := output(ctx, "go", "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	own, err := output(ctx, "go", "list", "-m", "-f", "{{.Dir}}", ours)
	if err != nil {
		return nil, err
	}
	modules := everyModule(programs)
	dirs, err := moduleDirs(ctx, modules)
	if err != nil {
		return nil, err
	}
	var parts []part
	var errs []error
	add := func(name, version string, texts []text, err error) {
		if err == nil && !slices.ContainsFunc(texts,
			func(t text) bool { return !strings.Contains(t.File, "/") && isLicense.MatchString(t.File) }) {
			err = errors.New("it has no licence file")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("licence of %s %s: %w", name, version, err))
			return
		}
		parts = append(parts, part{Name: name, Version: version, Texts: texts})
	}
	// Of these two only the folder itself: below are other modules' test data and our own packages.
	texts, err := topTexts(own)
	add("Umiak", "", texts, err)
	for _, v := range goVersions(programs) {
		texts, err := topTexts(root)
		add("Go and its standard library", strings.TrimPrefix(v, "go"), texts, err)
	}
	for _, m := range modules {
		texts, err := termsBelow(dirs[m.Import])
		add(m.Path, m.Version, texts, err)
	}
	for _, l := range libraries {
		texts, err := topTexts(l.Dir)
		add(l.Name, l.Version, texts, err)
	}
	return parts, errors.Join(errs...)
}

// goVersions are those that the programs were built with, each once.
func goVersions(programs []program) []string {
	var out []string
	for _, p := range programs {
		out = append(out, p.Go)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// moduleDirs asks Go where the sources lie, and refuses programs that were built from others.
func moduleDirs(ctx context.Context, modules []module) (map[string]string, error) {
	args := []string{"list", "-m", "-json"}
	for _, m := range modules {
		args = append(args, m.Import)
	}
	raw, err := output(ctx, "go", args...)
	if err != nil {
		return nil, err
	}
	type listed struct {
		Path, Version, Dir string
		Replace            *struct{ Path, Version string }
	}
	versions, dirs := map[string]string{}, map[string]string{}
	for d := json.NewDecoder(strings.NewReader(raw)); ; {
		var l listed
		if err := d.Decode(&l); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("read go list: %w", err)
		}
		dirs[l.Path], versions[l.Path] = l.Dir, l.Version
		if l.Replace != nil {
			versions[l.Path] = l.Replace.Version
		}
	}
	var errs []error
	for _, m := range modules {
		if versions[m.Import] != m.Version {
			errs = append(errs, fmt.Errorf("%s is linked as %s, but go.mod has %q: build the programs again", m.Import,
				m.Version, versions[m.Import]))
		} else if dirs[m.Import] == "" {
			errs = append(errs, fmt.Errorf("%s %s is not in the module cache: run go mod download", m.Import,
				m.Version))
		}
	}
	return dirs, errors.Join(errs...)
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("run %s %s: %w: %s", name, args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(string(out)), nil
}

// topTexts reads the terms in a folder itself. LGPL-2.1 is how a library's folder names the text that Debian's refers
// to.
func topTexts(dir string) ([]text, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []text
	for _, e := range entries {
		if isTermsFile(e) || e.Name() == "LGPL-2.1" {
			t, err := readText(dir, e.Name())
			if err != nil {
				return nil, err
			}
			out = append(out, t)
		}
	}
	return out, nil
}

// termsBelow reads those of folders within as well: code that a module has taken over keeps its own there.
func termsBelow(dir string) ([]text, error) {
	var out []text
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := e.Name()
		if e.IsDir() {
			// Other modules that are counted by themselves, or what is never compiled.
			if p != dir && (name == "vendor" || name == "testdata" || strings.HasPrefix(name, ".") ||
				strings.HasPrefix(name, "_")) {
				return filepath.SkipDir
			}
			return nil
		}
		if !isTermsFile(e) {
			return nil
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		t, err := readText(dir, filepath.ToSlash(rel))
		out = append(out, t)
		return err
	})
	return out, err
}

func isTermsFile(e fs.DirEntry) bool {
	return e.Type().IsRegular() && isTerms.MatchString(e.Name()) && !isCode.MatchString(e.Name())
}

func readText(dir, file string) (text, error) {
	f, err := os.Open(filepath.Join(dir, file))
	if err != nil {
		return text{}, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	raw, err := io.ReadAll(io.LimitReader(f, maxText+1))
	if err != nil {
		return text{}, err
	}
	if len(raw) > maxText {
		return text{}, fmt.Errorf("%s is longer than any licence", path.Join(dir, file))
	}
	return text{File: file, Body: strings.TrimRight(strings.ReplaceAll(string(raw), "\r\n", "\n"), " \t\n") + "\n"}, nil
}

// writeLicenses writes a list of all parts and below it every text once: many have the same, to the letter.
func writeLicenses(w io.Writer, parts []part) error {
	numbers := map[string]int{}
	var bodies []string
	var users [][]string
	var b strings.Builder
	b.WriteString("Under what terms Umiak is given, and all that is linked in its programs.\nThe numbers are those of the texts below.\n\n")
	slices.SortStableFunc(parts, func(a, b part) int { return cmp.Compare(order(a), order(b)) })
	seen := map[string]bool{}
	for _, p := range parts {
		id := strings.TrimSpace(p.Name + " " + p.Version)
		if seen[id] {
			continue
		}
		seen[id] = true
		var refs []string
		for _, t := range p.Texts {
			n, ok := numbers[t.Body]
			if !ok {
				bodies, users = append(bodies, t.Body), append(users, nil)
				n = len(bodies)
				numbers[t.Body] = n
			}
			users[n-1] = append(users[n-1], id+": "+t.File)
			refs = append(refs, fmt.Sprintf("%d (%s)", n, t.File))
		}
		fmt.Fprintf(&b, "%s: %s\n", id, strings.Join(refs, ", "))
	}
	for i, body := range bodies {
		fmt.Fprintf(&b, "\n%s\nText %d\n", strings.Repeat("=", 80), i+1)
		for _, u := range users[i] {
			fmt.Fprintf(&b, "  %s\n", u)
		}
		fmt.Fprintf(&b, "%s\n\n%s", strings.Repeat("-", 80), body)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// order puts Umiak and Go first; everything else goes by its name.
func order(p part) string {
	switch {
	case p.Name == "Umiak":
		return "0"
	case strings.HasPrefix(p.Name, "Go "):
		return "1"
	}
	return "2" + p.Name
}
