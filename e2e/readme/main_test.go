package main

import (
	"strings"
	"testing"
)

// The session of README.md is what run executes: it begins with the checkout's program and ends with a pod that
// answers.
func TestSessionLines(t *testing.T) {
	lines, err := checkout{root: "../.."}.sessionLines()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(lines[0], "dist/umiak kubectl ") || !strings.HasPrefix(lines[len(lines)-1], "curl ") {
		t.Errorf("the session is %q", lines)
	}
	for _, l := range lines {
		if strings.Contains(l, "sudo") {
			t.Errorf("%q: the test runs as root, where sudo need not be installed", l)
		}
	}
}
