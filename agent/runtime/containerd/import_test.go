package containerd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/umiak-io/umiak/agent/runtime/images"
	"github.com/umiak-io/umiak/internal/testing/eventually"
)

// other is an architecture that no test machine has.
const other = "s390x"

// for1 is busybox with a tag in it, so that no two are alike, said to be for an architecture.
func for1(t *testing.T, arch, tag string) v1.Image {
	t.Helper()
	img := busybox(t)
	c := must(img.ConfigFile()).DeepCopy()
	c.Architecture, c.Author = arch, tag
	return must(mutate.ConfigFile(img, c))
}

// ociArchive packs an OCI layout without what is in gone.
func ociArchive(t *testing.T, file string, add func(p layout.Path) error, gone ...v1.Image) {
	t.Helper()
	dir := t.TempDir()
	if err := add(must(layout.Write(dir, empty.Index))); err != nil {
		t.Fatal(err)
	}
	for _, img := range gone {
		for _, h := range []v1.Hash{must(img.Digest()), must(img.ConfigName())} {
			if err := os.Remove(filepath.Join(dir, "blobs", h.Algorithm, h.Hex)); err != nil {
				t.Fatal(err)
			}
		}
	}
	tmp := filepath.Join(filepath.Dir(file), "."+filepath.Base(file))
	if out, err := exec.Command("tar", "-C", dir, "-cf", tmp, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Rename(tmp, file); err != nil {
		t.Fatal(err)
	}
}

func called(ref string) layout.Option {
	return layout.WithAnnotations(map[string]string{"io.containerd.image.name": ref})
}

// nested has an index that lists another machine too, whose content is left out.
func nested(t *testing.T, file, ref string) {
	t.Helper()
	own, foreign := for1(t, runtime.GOARCH, ref), for1(t, other, ref)
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: foreign,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: other}}},
		mutate.IndexAddendum{Add: own, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux",
			Architecture: runtime.GOARCH}}})
	ociArchive(t, file, func(p layout.Path) error { return p.AppendIndex(index, called(ref)) }, foreign)
}

// flat has a manifest for each machine under one name.
func flat(t *testing.T, file, ref string, archs ...string) {
	t.Helper()
	ociArchive(t, file, func(p layout.Path) error {
		var errs []error
		for _, arch := range archs {
			errs = append(errs, p.AppendImage(for1(t, arch, ref), called(ref),
				layout.WithPlatform(v1.Platform{OS: "linux", Architecture: arch})))
		}
		return errors.Join(errs...)
	})
}

func (n *node) folder() string { return n.cfg.Dirs.Images() }

// archive puts an archive with an image of its own into a folder in one step.
func (n *node) archive(dir, file, ref string) {
	n.t.Helper()
	tmp := filepath.Join(dir, "."+file)
	if err := errors.Join(os.MkdirAll(dir, 0o755),
		tarball.WriteToFile(tmp, must(name.NewTag(ref)), for1(n.t, runtime.GOARCH, ref)),
		os.Rename(tmp, filepath.Join(dir, file))); err != nil {
		n.t.Fatal(err)
	}
}

// pinned says whether an image is there, and pinned.
func (c client) pinned(ctx context.Context, ref string) func() bool {
	return func() bool { i := c.hasImage(ctx, ref); return i != nil && i.Pinned }
}

func (n *node) logged(text string) func() bool {
	return func() bool { b, _ := os.ReadFile(n.log.Name()); return strings.Contains(string(b), text) }
}

func (n *node) ok(errs ...error) {
	n.t.Helper()
	if err := errors.Join(errs...); err != nil {
		n.t.Fatal(err)
	}
}

// TestWhatIsForThisMachine: of an archive with images for several machines, only those for this one count.
func TestWhatIsForThisMachine(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n.ok(os.MkdirAll(n.folder(), 0o755))
	n.start()
	c, sock, dir := n.client(), n.cfg.Dirs.ContainerdSocket(), t.TempDir()
	in := func(file string) string { return filepath.Join(dir, file) }

	nested(t, in("nested.tar"), "registry.test/nested:1")
	flat(t, in("flat.tar"), "registry.test/flat:1", other, runtime.GOARCH)
	flat(t, in("turned.tar"), "registry.test/turned:1", runtime.GOARCH, other)
	flat(t, in("foreign.tar"), "registry.test/foreign:1", other, "ppc64le")
	for _, file := range []string{"nested.tar", "flat.tar", "turned.tar"} {
		n.ok(images.Import(ctx, sock, []string{in(file)}, images.ImportOptions{}, io.Discard))
		ref := "registry.test/" + strings.TrimSuffix(file, ".tar") + ":1"
		eventually.True(t, ref, c.pinned(ctx, ref))
		r, err := c.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}, Verbose: true})
		if err != nil || strings.Contains(r.Info["info"], other) {
			t.Errorf("%s is %v, %v", ref, r, err)
		}
	}
	err := images.Import(ctx, sock, []string{in("foreign.tar")}, images.ImportOptions{}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "registry.test/foreign:1: it is for linux/ppc64le, linux/"+other+
		", not for linux/"+runtime.GOARCH) {
		t.Errorf("a foreign image: %v", err)
	}
	// What was imported can be exported, though parts for others are missing, and imported again.
	n.ok(images.Export(ctx, sock, []string{"registry.test/nested:1", "registry.test/flat:1"}, in("again.tar"), nil))
	n.ok(images.Import(ctx, sock, []string{in("again.tar")}, images.ImportOptions{}, io.Discard))
	// A tag that an import moves leaves nothing pinned behind it.
	old := c.hasImage(ctx, "registry.test/flat:1")
	ociArchive(t, in("moved.tar"), func(p layout.Path) error {
		return p.AppendImage(for1(t, runtime.GOARCH, "moved"), called("registry.test/flat:1"))
	})
	n.ok(images.Import(ctx, sock, []string{in("moved.tar")}, images.ImportOptions{}, io.Discard))
	eventually.True(t, "the tag is moved", func() bool {
		i := c.hasImage(ctx, "registry.test/flat:1")
		return i != nil && i.Id != old.Id && i.Pinned
	})
	for _, ref := range old.RepoDigests {
		eventually.True(t, ref+" is unpinned", func() bool { i := c.hasImage(ctx, ref); return i == nil || !i.Pinned })
	}
	// With all platforms, the second manifest stays.
	n.ok(images.Import(ctx, sock, []string{in("turned.tar")}, images.ImportOptions{AllPlatforms: true}, io.Discard))
	n.ok(images.CheckPackable(ctx, sock, "registry.test/turned:1",
		images.Selection{Platforms: []string{"linux/" + other, "linux/" + runtime.GOARCH}}))

	// In the folder, an archive that cannot be used wholly is imported as far as it can, and is not read again at
	// each start.
	mixed := filepath.Join(n.folder(), "mixed.TAR")
	own := for1(t, runtime.GOARCH, "mixed")
	ociArchive(t, mixed, func(p layout.Path) error {
		return errors.Join(p.AppendImage(own, called("registry.test/own:1")),
			p.AppendImage(for1(t, other, "mixed"), called("registry.test/theirs:1")))
	})
	eventually.True(t, "its own is there", c.pinned(ctx, "registry.test/own:1"))
	eventually.True(t, "the other is named", n.logged("registry.test/theirs:1: it is for linux/"+other))
	n.stop(syscall.SIGTERM)
	before, _ := os.ReadFile(n.log.Name())
	n.start()
	eventually.True(t, "it is named again", func() bool {
		b, _ := os.ReadFile(n.log.Name())
		return bytes.Contains(b[len(before):], []byte("registry.test/theirs:1: it is for"))
	})
	if after, _ := os.ReadFile(n.log.Name()); bytes.Contains(after[len(before):], []byte(`msg="importing images"`)) {
		t.Error("it was read again")
	}
}

// TestTheFolderAndWhatHappensToIt: archives are found whatever becomes of the folder and of what it links to.
func TestTheFolderAndWhatHappensToIt(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	elsewhere := filepath.Join(n.cfg.Dirs.Data, "elsewhere")
	// to a disk that is not there yet
	n.ok(os.MkdirAll(filepath.Dir(n.folder()), 0o755), os.Symlink(filepath.Join(elsewhere, "images"), n.folder()))
	n.start()
	c := n.client()
	n.archive(filepath.Join(elsewhere, "images"), "late.tar", "registry.test/late:1")
	eventually.True(t, "a link whose target comes later", c.pinned(ctx, "registry.test/late:1"))

	n.ok(os.Remove(n.folder()), os.Mkdir(n.folder(), 0o755))
	n.archive(n.folder(), "made.tar", "registry.test/made:1")
	eventually.True(t, "a folder in the link's place", c.pinned(ctx, "registry.test/made:1"))
	eventually.True(t, "the image of before is unpinned", func() bool { return !c.pinned(ctx, "registry.test/late:1")() })

	n.ok(os.RemoveAll(n.folder()))
	eventually.True(t, "images stay pinned while the folder is not there", c.pinned(ctx, "registry.test/made:1"))
	n.archive(n.folder(), "again.tar", "registry.test/again:1")
	eventually.True(t, "a folder that was removed and made again", c.pinned(ctx, "registry.test/again:1"))
	eventually.True(t, "what was removed with it is unpinned",
		func() bool { return !c.pinned(ctx, "registry.test/made:1")() })

	next := n.folder() + ".next"
	n.archive(next, "moved.tar", "registry.test/moved:1")
	n.ok(os.Rename(n.folder(), n.folder()+".old"), os.Rename(next, n.folder()))
	eventually.True(t, "a folder that was renamed into place", c.pinned(ctx, "registry.test/moved:1"))
	n.archive(n.folder(), "after.tar", "registry.test/after:1")
	eventually.True(t, "and is watched", c.pinned(ctx, "registry.test/after:1"))

	n.ok(os.MkdirAll(elsewhere, 0o755), os.Symlink(filepath.Join(elsewhere, "disk", "app.tar"),
		filepath.Join(n.folder(), "link.tar")))
	eventually.True(t, "a link to nothing is named", n.logged("link.tar"))
	n.archive(filepath.Join(elsewhere, "disk"), "app.tar", "registry.test/linked:1")
	eventually.True(t, "a link to a file that comes later", c.pinned(ctx, "registry.test/linked:1"))
	n.archive(filepath.Join(elsewhere, "disk"), "app.tar", "registry.test/linked:2")
	eventually.True(t, "the file behind a link is replaced", c.pinned(ctx, "registry.test/linked:2"))
	eventually.True(t, "what it brought before is unpinned",
		func() bool { return !c.pinned(ctx, "registry.test/linked:1")() })

	disk := filepath.Join(n.cfg.Dirs.Data, "disk")
	n.archive(disk, "mounted.tar", "registry.test/mounted:1")
	n.inside("mount", "--bind", disk, n.folder())
	eventually.True(t, "a disk that is mounted over the folder", c.pinned(ctx, "registry.test/mounted:1"))
	n.archive(disk, "there.tar", "registry.test/there:1")
	eventually.True(t, "and is watched", c.pinned(ctx, "registry.test/there:1"))
	eventually.True(t, "umount while nothing reads there", func() bool { return n.enter("umount", n.folder()).Run() == nil })
	n.archive(n.folder(), "back.tar", "registry.test/back:1")
	eventually.True(t, "and taken away again", c.pinned(ctx, "registry.test/back:1"))
	if !c.pinned(ctx, "registry.test/there:1")() || !c.pinned(ctx, "registry.test/mounted:1")() {
		t.Error("what was on the disk that is not there any more is unpinned")
	}

	// An image of an archive that is removed or unpinned behind our back comes back.
	img := c.hasImage(ctx, "registry.test/back:1")
	_, err := c.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: img.Id}})
	n.ok(err)
	eventually.True(t, "an image that was removed", c.pinned(ctx, "registry.test/back:1"))

	// Archives that are removed while they wait or are imported end nothing.
	for i := range 6 {
		file := fmt.Sprintf("gone%d.tar", i)
		n.archive(n.folder(), file, fmt.Sprintf("registry.test/gone:%d", i))
		if i%2 == 0 {
			eventually.True(t, "it is seen", n.logged(file))
		}
		n.ok(os.Remove(filepath.Join(n.folder(), file)))
	}
	n.archive(n.folder(), "last.tar", "registry.test/last:1")
	eventually.True(t, "an archive after those that were removed", c.pinned(ctx, "registry.test/last:1"))
	for i := range 6 {
		ref := fmt.Sprintf("registry.test/gone:%d", i)
		eventually.True(t, ref+" is not pinned", func() bool { return !c.pinned(ctx, ref)() })
	}
	if out, _ := n.stop(syscall.SIGTERM); !strings.HasPrefix(out, "goroutines") {
		t.Errorf("it did not end in order: %q", out)
	}
}

// unfinished lists what imports have begun and not ended.
func unfinished(t *testing.T, n *node) []string {
	t.Helper()
	c, err := images.Connect(n.cfg.Dirs.ContainerdSocket())
	n.ok(err)
	defer c.Close()
	ctx := namespaces.WithNamespace(t.Context(), images.Namespace)
	var out []string
	all, err := c.ContentStore().ListStatuses(ctx)
	n.ok(err)
	for _, s := range all {
		out = append(out, "ingest "+s.Ref)
	}
	held, err := c.LeasesService().List(ctx)
	n.ok(err)
	for _, l := range held {
		if strings.HasPrefix(l.ID, "umiak-import-") {
			out = append(out, "lease "+l.ID)
		}
	}
	return out
}

// TestBrokenOffImportsLeaveNothing: neither a signal nor a kill leaves content that nobody uses.
func TestBrokenOffImportsLeaveNothing(t *testing.T) {
	n := newNode(t)
	n.ok(os.MkdirAll(n.folder(), 0o755))
	n.start()
	sock := n.cfg.Dirs.ContainerdSocket()
	dir := t.TempDir()
	whole := filepath.Join(dir, "whole.tar")
	n.ok(tarball.WriteToFile(whole, must(name.NewTag("box:1")), busybox(t)))

	// A signal, in the middle of a blob: the rest of the archive never comes.
	r, w, err := os.Pipe()
	n.ok(err)
	stdin := os.Stdin
	os.Stdin = r
	defer func() { os.Stdin = stdin }()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- images.Import(ctx, sock, []string{"-"}, images.ImportOptions{}, io.Discard) }()
	raw, err := os.ReadFile(whole)
	n.ok(err)
	go func() { _, _ = w.Write(raw[:len(raw)*3/4]) }()
	eventually.True(t, "content is being written", func() bool {
		return slices.ContainsFunc(unfinished(t, n),
			func(s string) bool { return strings.HasPrefix(s, "ingest umiak-import-") })
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a broken-off import: %v", err)
	}
	_ = w.Close()
	if left := unfinished(t, n); len(left) > 0 {
		t.Errorf("left: %v", left)
	}

	// A kill: what a process left that is no more.
	c, err := images.Connect(sock)
	n.ok(err)
	defer c.Close()
	leave := func(id, owner string) {
		t.Helper()
		nctx := namespaces.WithNamespace(t.Context(), images.Namespace)
		l, err := c.LeasesService().Create(nctx, leases.WithID(id),
			leases.WithLabels(map[string]string{"umiak.io/import-owner": owner}))
		n.ok(err)
		cw, err := c.ContentStore().Writer(leases.WithLease(nctx, l.ID), content.WithRef(id+"-tar-blob"))
		n.ok(err)
		_, err = cw.Write([]byte("part"))
		n.ok(err, cw.Close())
	}
	leave("umiak-import-00", "1/1/another-boot")
	n.ok(images.Import(t.Context(), sock, []string{whole}, images.ImportOptions{}, io.Discard))
	if left := unfinished(t, n); len(left) > 0 {
		t.Errorf("left after the next import: %v", left)
	}
	leave("umiak-import-01", "1/1/another-boot")
	n.stop(syscall.SIGKILL)
	n.start()
	eventually.True(t, "nothing is left after the next start", func() bool { return len(unfinished(t, n)) == 0 })

	// An export that is broken off.
	out := filepath.Join(dir, "out")
	n.ok(os.Mkdir(out, 0o755), os.WriteFile(filepath.Join(out, ".umiak-export-123"), []byte("of a killed one"), 0o600))
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if err := images.Export(ctx, sock, []string{"box:1"}, filepath.Join(out, "x.tar"), nil); err == nil {
		t.Error("exported without time")
	}
	n.ok(images.Export(t.Context(), sock, []string{"box:1"}, filepath.Join(out, "y.tar"), nil))
	if left, _ := os.ReadDir(out); len(left) != 1 || left[0].Name() != "y.tar" {
		t.Errorf("left of exports: %v", left)
	}
}

// TestAPullKeepsAnImportPinned: what the kubelet pulls again stays pinned as long as it is the same.
func TestAPullKeepsAnImportPinned(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n.ok(tarball.WriteToFile(filepath.Join(n.cfg.Dirs.Data, "box.tar"), must(name.NewTag("box:1")), busybox(t)))
	n.cfg.Registry = true
	n.ok(os.WriteFile(n.cfg.Registries, []byte(`
mirrors: {"*": {endpoint: ["https://127.0.0.1:`+registryPort+`"], rewrite: {"^library/(.*)": "cache/$1"}}}
configs: {"127.0.0.1:`+registryPort+`": {tls: {insecure_skip_verify: true}, auth: {username: `+user+`, password: `+password+`}}}
`), 0o600))
	n.start()
	c, sock := n.client(), n.cfg.Dirs.ContainerdSocket()
	const ref = "example.invalid/library/box:1"
	pull := func() {
		t.Helper()
		_, err := c.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
		n.ok(err)
	}
	pull()
	if c.pinned(ctx, ref)() {
		t.Fatal("a pulled image is pinned")
	}
	file := filepath.Join(t.TempDir(), "box.tar")
	n.ok(images.Export(ctx, sock, []string{ref}, file, nil),
		images.Import(ctx, sock, []string{file}, images.ImportOptions{}, io.Discard))
	eventually.True(t, "it is pinned", c.pinned(ctx, ref))
	pull()
	var list bytes.Buffer
	n.ok(images.List(ctx, sock, "json", &list))
	if !c.pinned(ctx, ref)() || !strings.Contains(list.String(), `"pinned": true`) {
		t.Errorf("the pull unpinned it: %s", list.String())
	}
}
