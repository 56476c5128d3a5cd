package main

import (
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ours is the module that this repository is. Its version is the release's.
const ours = "github.com/umiak-io/umiak"

// module is one that is linked, under the name by which programs import it and as what it was replaced by.
type module struct {
	Import  string // what go.mod calls it
	Path    string // where it is from: its own path or the replacement's
	Version string
	Sum     string
}

// program is an executable and what its linker noted in it.
type program struct {
	Name    string
	Sum     string // SHA-256 of the file
	Go      string // the version of Go, whose standard library is linked
	Main    module // the module of the main package; no Version where that is ours
	Modules []module
}

// library is one that is no Go module.
type library struct {
	Name, Version string
	Dir           string
}

func readPrograms(args []string) ([]program, error) {
	var out []program
	for _, arg := range args {
		name, file, ok := strings.Cut(arg, "=")
		if !ok {
			return nil, fmt.Errorf("%q is not NAME=PROGRAM", arg)
		}
		p, err := readProgram(name, file)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func readProgram(name, file string) (program, error) {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return program{}, fmt.Errorf("read what %s is built from: %w", file, err)
	}
	p := program{Name: name, Go: info.GoVersion, Main: module{Import: info.Main.Path,
		Path: info.Main.Path, Version: info.Main.Version, Sum: info.Main.Sum}}
	if p.Main.Path == ours {
		p.Main.Version = ""
	}
	for _, d := range info.Deps {
		m := module{Import: d.Path, Path: d.Path, Version: d.Version, Sum: d.Sum}
		if d.Replace != nil {
			m.Path, m.Version, m.Sum = d.Replace.Path, d.Replace.Version, d.Replace.Sum
		}
		p.Modules = append(p.Modules, m)
	}
	slices.SortFunc(p.Modules, compareModules)
	f, err := os.Open(file)
	if err != nil {
		return program{}, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return program{}, fmt.Errorf("read %s: %w", file, err)
	}
	p.Sum = hex.EncodeToString(h.Sum(nil))
	return p, nil
}

func compareModules(a, b module) int {
	return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Import, b.Import))
}

// readLibraries lists the folders NAME@VERSION below the given ones. Two architectures name the same library.
func readLibraries(folders []string) ([]library, error) {
	var out []library
	for _, folder := range folders {
		entries, err := os.ReadDir(folder)
		if err != nil {
			return nil, fmt.Errorf("list libraries: %w", err)
		}
		for _, e := range entries {
			name, version, ok := strings.Cut(e.Name(), "@")
			if !ok || !e.IsDir() {
				return nil, fmt.Errorf("%s is not a folder NAME@VERSION", filepath.Join(folder, e.Name()))
			}
			out = append(out, library{Name: name, Version: version, Dir: filepath.Join(folder, e.Name())})
		}
	}
	slices.SortStableFunc(out, func(a, b library) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version))
	})
	return out, nil
}

// everyModule is what all programs together link, each once, ours left out.
func everyModule(programs []program) []module {
	var out []module
	for _, p := range programs {
		out = append(out, p.Modules...)
		if p.Main.Path != ours {
			out = append(out, p.Main)
		}
	}
	out = slices.DeleteFunc(out, func(m module) bool { return m.Path == ours })
	slices.SortFunc(out, compareModules)
	return slices.Compact(out)
}
