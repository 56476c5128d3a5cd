package overlay

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

func TestLibrary(t *testing.T) {
	const program = `// Header.
package main

import (
	"fmt"

	fw "example.com/framework"
	"example.com/framework/more"
)

type main2 struct{}

func (main2) main() {}

func main() { fmt.Println("main", fw.A, more.B) }
`
	const want = `// Header.
package tool

import (
	"fmt"

	fw "example.com/small"
	"example.com/framework/more"
)

type main2 struct{}

func (main2) main() {}

func Main() { fmt.Println("main", fw.A, more.B) }
`
	got, isMain, err := library("main.go", []byte(program), "tool",
		map[string]string{"example.com/framework": "example.com/small"})
	if err != nil || !isMain || string(got) != want {
		t.Errorf("isMain %v, %v:\n%s", isMain, err, got)
	}
	if got, isMain, err = library("a.go", []byte("package main\n"), "x", nil); err != nil || isMain ||
		string(got) != "package x\n" {
		t.Errorf("a file without main: isMain %v, %v: %s", isMain, err, got)
	}
	if _, _, err = library("a.go", []byte("pack"), "x", nil); err == nil {
		t.Error("a file that is no Go file was accepted")
	}
}

func TestClose(t *testing.T) {
	dir := t.TempDir()
	o := New("/module", dir)
	if err := o.Add("a/b/c.go", []byte("package b\n")); err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "overlay.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Replace map[string]string }
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	file := got.Replace["/module/a/b/c.go"]
	if text, err := os.ReadFile(file); err != nil || string(text) != "package b\n" || len(got.Replace) != 1 {
		t.Errorf("%v leads to %q, %v", got.Replace, text, err)
	}
}
