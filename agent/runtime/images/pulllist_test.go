package images

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
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

// imageStore is a store of pinned images that cannot read those of failing.
type imageStore struct {
	images.Store
	all     map[string]images.Image
	failing string
}

func (s imageStore) Get(_ context.Context, name string) (images.Image, error) {
	if name == s.failing {
		return images.Image{}, errdefs.ErrUnavailable
	}
	return s.all[name], nil
}

func (s imageStore) List(_ context.Context, filters ...string) (out []images.Image, _ error) {
	for _, img := range s.all {
		if slices.Contains(filters, "target.digest=="+img.Target.Digest.String()) {
			img.Labels = maps.Clone(img.Labels)
			out = append(out, img)
		}
	}
	return out, nil
}

func (s imageStore) Update(_ context.Context, img images.Image, _ ...string) (images.Image, error) {
	s.all[img.Name] = img
	return img, nil
}

// TestAFailedLookLosesNoPin: an image of a list that cannot be looked up for a moment stays recorded and pinned; one
// that the list no longer has does not.
func TestAFailedLookLosesNoPin(t *testing.T) {
	const read, failing, dropped = "r.io/read:1", "r.io/failing:1", "r.io/dropped:1"
	store := imageStore{all: map[string]images.Image{}, failing: failing}
	before := map[string]string{}
	for _, name := range []string{read, failing, dropped} {
		d := digest.FromString(name)
		before[name] = d.String()
		store.all[name] = images.Image{Name: name, Labels: map[string]string{pinnedLabel: pinnedValue},
			Target: ocispec.Descriptor{Digest: d}}
	}
	c, err := client.New("", client.WithServices(client.WithImageStore(store)))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.txt"), []byte(read+"\n"+failing+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	i := New(Config{Dir: dir, State: filepath.Join(t.TempDir(), "imported.json"), Log: slog.New(slog.DiscardHandler)})
	i.records = map[string]record{"a.txt": {imported: imported{Images: before}}}
	r := newPullLists(c).pullList(t.Context(), i, "a.txt")
	if !errors.Is(r.missing, errdefs.ErrUnavailable) || len(r.images) != 1 {
		t.Errorf("%+v", r)
	}
	if got := i.records["a.txt"].Images; len(got) != 2 || got[failing] != before[failing] || got[read] != before[read] {
		t.Errorf("recorded: %v", got)
	}
	for name, want := range map[string]bool{read: true, failing: true, dropped: false} {
		if pinned := store.all[name].Labels[pinnedLabel] == pinnedValue; pinned != want {
			t.Errorf("%s: pinned %v", name, pinned)
		}
	}
}
