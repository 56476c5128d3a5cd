// Package overlay prepares sources for `go build -overlay`: programs of other modules (package main), which cannot be
// imported, become packages of this module. The repository holds no copy of their code.
//
// It imports nothing of umiak. The generators that scripts/build runs call it.
package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Overlay collects generated files. They are written below a directory, and the go command sees them below the root of
// the module.
type Overlay struct {
	root, dir string
	replace   map[string]string // path in the module to path on disk
}

// New returns an empty overlay for the module at root. Its files are written below dir.
func New(root, dir string) *Overlay {
	return &Overlay{root: root, dir: dir, replace: map[string]string{}}
}

// Add writes a file; name is its path in the module, with slashes.
func (o *Overlay) Add(name string, text []byte) error {
	at := filepath.Join(o.dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	o.replace[filepath.Join(o.root, filepath.FromSlash(name))] = at
	return os.WriteFile(at, text, 0o644)
}

// Close writes overlay.json, which `go build -overlay` reads.
func (o *Overlay) Close() error {
	text, err := json.MarshalIndent(map[string]any{"Replace": o.replace}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.dir, "overlay.json"), text, 0o644)
}

// Program describes an upstream program and the package that it becomes.
type Program struct {
	Import  string            // import path of the program
	Folder  string            // path of the package in this module, with slashes; its last element is the package's name
	Imports map[string]string // import paths to replace
}

// AddProgram adds a program's files as a package. Its func main is exported as Main.
func (o *Overlay) AddProgram(p Program) error {
	out, err := exec.CommandContext(context.Background(), "go", "list", "-f", `{{.Dir}}{{range .GoFiles}} {{.}}{{end}}`,
		p.Import).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return fmt.Errorf("go list: %w: %s", err, exit.Stderr)
		}
		return fmt.Errorf("go list: %w", err)
	}
	fields := strings.Fields(string(out))
	found := false
	for _, file := range fields[1:] {
		src, err := os.ReadFile(filepath.Join(fields[0], file))
		if err != nil {
			return err
		}
		text, isMain, err := library(file, src, path.Base(p.Folder), p.Imports)
		if err != nil {
			return err
		}
		found = found || isMain
		if err := o.Add(path.Join(p.Folder, file), text); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("%s: no func main", p.Import)
	}
	return nil
}

// library returns a file's text with the package name pkg, its func main exported as Main and some imports replaced, and
// whether it had a func main. Nothing else changes, so line numbers in messages stay upstream's.
func library(file string, src []byte, pkg string, imports map[string]string) (text []byte, isMain bool, err error) {
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, file, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, false, err
	}
	type edit struct {
		at  int
		old string
		by  string
	}
	var edits []edit
	replace := func(at token.Pos, old, by string) { edits = append(edits, edit{set.Position(at).Offset, old, by}) }
	replace(f.Name.Pos(), f.Name.Name, pkg)
	for _, imp := range f.Imports {
		if by, ok := imports[strings.Trim(imp.Path.Value, `"`)]; ok {
			replace(imp.Path.Pos(), imp.Path.Value, strconv.Quote(by))
		}
	}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "main" {
			replace(fn.Name.Pos(), "main", "Main")
			isMain = true
		}
	}
	// From the end to the beginning, so that earlier offsets stay valid.
	for _, e := range slices.Backward(edits) {
		src = slices.Concat(src[:e.at], []byte(e.by), src[e.at+len(e.old):])
	}
	return src, isMain, nil
}
