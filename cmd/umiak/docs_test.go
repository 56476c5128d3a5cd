package main

import (
	"io"
	"os"
	"strings"
	"testing"
)

// The table of commands in docs/README.md has every command that help lists.
func TestCommandsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range app(io.Discard, io.Discard).Commands {
		row := "| `umiak " + c.Name
		if c.Name == "agent" {
			row = "| `umiak-agent "
		}
		if !c.Hidden && !strings.Contains(string(page), row) {
			t.Errorf("docs/README.md has no row for umiak %s", c.Name)
		}
	}
}
