package instance_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
)

func TestRegistry(t *testing.T) {
	r := instance.Registry(filepath.Join(t.TempDir(), "nodes"))
	if got := r.List(); len(got) != 0 {
		t.Fatalf("%v", got)
	}
	a, b := layout.Dirs{Data: "/data/a", Run: "/run/a"}, layout.Dirs{Data: "/data/b", Run: "/run/b"}
	for _, d := range []layout.Dirs{a, b, a, layout.Default} {
		if err := r.Add(d); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(string(r), "torn.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := r.List(); len(got) != 2 || !slices.Contains(got, a) || !slices.Contains(got, b) {
		t.Fatalf("%v", got)
	}
	for _, d := range []layout.Dirs{a, a, layout.Default} {
		if err := r.Remove(d); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.List(); !slices.Equal(got, []layout.Dirs{b}) {
		t.Fatalf("%v", got)
	}
}
