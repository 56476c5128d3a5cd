package instance_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
)

func TestOneOwnerAtATime(t *testing.T) {
	dir := t.TempDir()
	d := layout.Dirs{Data: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run")}
	if instance.Running(d) {
		t.Fatal("nobody has been there")
	}
	release, err := instance.Acquire(d)
	if err != nil {
		t.Fatal(err)
	}
	_, err = instance.Acquire(d)
	if !errors.Is(err, instance.ErrTaken) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Fatalf("got %v", err)
	}
	if !instance.Running(d) {
		t.Fatal("not seen as running")
	}
	release()
	if instance.Running(d) {
		t.Fatal("seen as running after release")
	}
	if release, err = instance.Acquire(d); err != nil {
		t.Fatal(err)
	}
	release()
}
