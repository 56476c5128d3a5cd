package filelock_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/filelock"
)

func TestALockHasOneHolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	if filelock.Held(file) {
		t.Error("a file that is missing is locked")
	}
	release, err := filelock.Try(file)
	if err != nil {
		t.Fatal(err)
	}
	if !filelock.Held(file) {
		t.Error("a file that was locked is not")
	}
	_, err = filelock.Try(file)
	if !errors.Is(err, filelock.ErrHeld) || !strings.HasSuffix(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("a second holder gets %v, want ErrHeld and the process id", err)
	}
	got := make(chan error, 1)
	go func() {
		r, err := filelock.Wait(file)
		if err == nil {
			r()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Errorf("Wait returned %v while the lock is held", err)
	default:
	}
	release()
	if err := <-got; err != nil {
		t.Error(err)
	}
	if release, err = filelock.Try(file); err != nil {
		t.Fatalf("after its release: %v", err)
	}
	release()
	if filelock.Held(file) {
		t.Error("a lock that was released is held")
	}
}
