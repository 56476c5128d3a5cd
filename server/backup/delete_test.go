package backup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDelete(t *testing.T) {
	k, f, _ := withBucket(t)
	var names []string
	for range 3 {
		saved, err := k.Save(t.Context(), "by-hand", "")
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, filepath.Base(saved.Path))
		f.revision++
	}
	removed, err := k.cfg.Delete(t.Context(), k.src.Dirs, names[0])
	if err != nil || len(removed) != 2 || filepath.Base(removed[0]) != names[0] ||
		removed[1] != "s3://snaps/clusters/pi/"+names[0] {
		t.Errorf("%v, %v", removed, err)
	}
	// One is in the bucket alone.
	if err := os.Remove(filepath.Join(k.cfg.Folder(k.src.Dirs), names[1])); err != nil {
		t.Fatal(err)
	}
	if removed, err = k.cfg.Delete(t.Context(), k.src.Dirs, names[1]); err != nil || len(removed) != 1 {
		t.Errorf("%v, %v", removed, err)
	}
	removed, err = k.cfg.Delete(t.Context(), k.src.Dirs, names[0], names[2])
	if err == nil || !strings.Contains(err.Error(), "there is no "+names[0]) || len(removed) != 2 {
		t.Errorf("one of two exists: %v, %v", removed, err)
	}
	if here, there := places(t, k); here != 0 || there != 0 {
		t.Errorf("%d here and %d there are left", here, there)
	}

	// Another cluster's snapshot in the same bucket.
	other, _, _ := withBucket(t)
	other.cfg.S3, other.cfg.S3Unencrypted, other.openBucket = k.cfg.S3, true, k.openBucket
	other.now = func() time.Time { return time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC) }
	saved, err := other.Save(t.Context(), "theirs", "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.cfg.Delete(t.Context(), k.src.Dirs, filepath.Base(saved.Path))
	if err == nil || !strings.Contains(err.Error(), "another cluster's") {
		t.Errorf("another cluster's: %v", err)
	}
	for _, bad := range []string{"../x", "/etc/passwd", "notes.txt", ""} {
		if _, err := k.cfg.Delete(t.Context(), k.src.Dirs, bad); err == nil ||
			!strings.Contains(err.Error(), "is not the name of a snapshot") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
