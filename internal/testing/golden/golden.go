// Package golden compares what a function makes of files with what is written down. Tests call it.
//
// testdata/NAME.in is what goes in, NAME.out what comes out. `go test -record` writes the latter anew, and
// fails, so that it is looked at and never left on.
package golden

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var record = flag.Bool("record", false, "write the golden files anew; the test fails while this is on")

// Walk calls f for each testdata/*.in.
func Walk(t *testing.T, f func(in string) (out string)) {
	t.Helper()
	ins, err := filepath.Glob("testdata/*.in")
	if err != nil || len(ins) == 0 {
		t.Fatal("no testdata", err)
	}
	for _, in := range ins {
		t.Run(filepath.Base(in), func(t *testing.T) {
			b, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			Equal(t, strings.TrimSuffix(in, ".in")+".out", f(string(b)))
		})
	}
}

// Equal compares got with the content of a file, or writes the file where the flag -record is set.
func Equal(t *testing.T, file, got string) {
	t.Helper()
	if *record {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Fatal("recorded")
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
