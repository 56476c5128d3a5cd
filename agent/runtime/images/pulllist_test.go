package images

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestParsePullList(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []string
		says string
	}{
		"empty":    {"", nil, ""},
		"comments": {"# images\n\n   \n#busybox\n", nil, ""},
		"as written for k3s": {"docker.io/rancher/mirrored-pause:3.6\r\nbusybox\n\tghcr.io/a/b:v1  \nnginx:1.27",
			[]string{"docker.io/rancher/mirrored-pause:3.6", "docker.io/library/busybox:latest", "ghcr.io/a/b:v1",
				"docker.io/library/nginx:1.27"}, ""},
		"twice":  {"busybox\ndocker.io/library/busybox:latest\n", []string{"docker.io/library/busybox:latest"}, ""},
		"digest": {"r.io/a@sha256:" + strings.Repeat("0", 64), []string{"r.io/a@sha256:" + strings.Repeat("0", 64)}, ""},
		"BOM":    {"\ufeffr.io/a:1\n", []string{"r.io/a:1"}, ""},
		"one bad line of two": {"Not An Image\nr.io/a:1\n", []string{"r.io/a:1"},
			`line 1: "Not An Image" is not the name of an image`},
	} {
		got, err := parsePullList(c.text)
		if !slices.Equal(got, c.want) || (err == nil) != (c.says == "") || err != nil && err.Error() != c.says {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestIsPullList(t *testing.T) {
	for name, want := range map[string]bool{"images.txt": true, "A.TXT": true, ".hidden.txt": false, ".txt": false,
		"images.tar": false, "images.txt.part": false} {
		if isPullList(name) != want {
			t.Errorf("%s: want %v", name, want)
		}
	}
}

// TestRetryLater tries a list again after growing pauses, and begins anew once the list has changed.
func TestRetryLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPullLists(nil)
		defer p.close()
		id, err := identity{Size: 1}, errors.New("connection refused")
		var last time.Duration
		for n := range 8 {
			pause, news := p.retryLater("a.txt", id, err)
			if news != (n == 0) {
				t.Errorf("attempt %d: news %v", n, news)
			}
			if pause < minPullPause/2 || pause > maxPullPause*3/2 || n == 7 && pause < 4*minPullPause {
				t.Errorf("attempt %d: the pause is %s", n, pause)
			}
			last = pause
			if name, ok := p.queue.next(); !ok || name != "a.txt" {
				t.Fatalf("queued: %q, %v", name, ok)
			}
			p.queue.done("a.txt")
		}
		if pause, news := p.retryLater("a.txt", identity{Size: 2}, err); !news || pause > 3*minPullPause/2 {
			t.Errorf("the list has changed: %s after %s, news %v", pause, last, news)
		}
		p.forget("a.txt")
		time.Sleep(time.Hour) // of the synthetic clock
		synctest.Wait()
		if len(p.queue.waiting) != 0 {
			t.Error("a list that was forgotten is queued")
		}
	})
}
