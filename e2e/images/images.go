// Package images builds the container images of the tests, as archives that a user without internet would
// copy into the images folder.
//
// There is one file system, from Debian's static busybox and the program in app/. It is published under several
// names: App1 and App2 differ in one environment variable, so that updates have something to update to; Nginx serves
// at port 80. Tests and benchmarks call the package; it needs the go tool and the package busybox-static.
package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"
)

// The images' names. Nothing can be pulled from there, so an image that runs was imported.
const (
	App1 = "registry.test/app:1"
	App2 = "registry.test/app:2"
	// Bench has the name that the load programs in shared/peers use.
	Bench = "docker.io/library/bb:1"
	// Nginx has the name of the image in README.md and examples/, and listens at its port, 80.
	Nginx = "docker.io/library/nginx:1.29-alpine"
)

// published maps each name to what its image does differently.
var published = map[string]struct {
	version string
	cmd     []string
}{
	App1:  {"1", []string{"serve"}},
	App2:  {"2", []string{"serve"}},
	Bench: {"bench", []string{"serve"}},
	Nginx: {"nginx", []string{"serve", "-http", ":80"}},
}

// Program builds app/ into a file and returns its path. The go tool's cache makes the second call cheap.
func Program(ctx context.Context, dir string) (string, error) { return program(ctx, dir, arch(ctx)) }

func program(ctx context.Context, dir, arch string) (string, error) {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	out := filepath.Join(dir, "app")
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w", "-o", out, "./e2e/images/app")
	cmd.Dir = strings.TrimSpace(string(root))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if msg, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the test program: %w: %s", err, msg)
	}
	return out, nil
}

// Set is the images in memory, ready to be written in any form.
type Set map[string]v1.Image

// Build makes the images for the machine that the go tool builds for.
func Build(ctx context.Context) (Set, error) { return BuildFor(ctx, arch(ctx), hostBusybox) }

// hostBusybox is where Debian's package has it. It also is what the names of its tools are taken from.
const hostBusybox = "/bin/busybox"

// BuildFor makes the images for machines of another architecture, from a busybox for it.
func BuildFor(ctx context.Context, arch, busybox string) (Set, error) {
	dir, err := os.MkdirTemp("", "umiak-images-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	app, err := program(ctx, dir, arch)
	if err != nil {
		return nil, err
	}
	layer, err := rootfs(ctx, app, busybox)
	if err != nil {
		return nil, fmt.Errorf("build test image: %w", err)
	}
	set := Set{}
	for ref, p := range published {
		img, err := mutate.AppendLayers(empty.Image, layer)
		if err != nil {
			return nil, fmt.Errorf("build %s: %w", ref, err)
		}
		if set[ref], err = configured(img, arch, v1.Config{Env: []string{"PATH=/bin", "VERSION=" + p.version},
			WorkingDir: "/", Entrypoint: []string{"/bin/app"}, Cmd: p.cmd}); err != nil {
			return nil, fmt.Errorf("build %s: %w", ref, err)
		}
	}
	return set, nil
}

// rootfs is one layer: busybox with a link for each of its tools, the program, and a few files that
// programs expect.
func rootfs(ctx context.Context, app, busybox string) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	var errs []error
	add := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		_, err := 0, w.WriteHeader(&h)
		if err == nil {
			_, err = w.Write(data)
		}
		errs = append(errs, err)
	}
	for _, d := range []string{"bin/", "etc/", "proc/", "sys/", "dev/", "root/", "var/"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	for name, from := range map[string]string{"bin/busybox": busybox, "bin/app": app} {
		data, err := os.ReadFile(from)
		if errors.Is(err, fs.ErrNotExist) && name == "bin/busybox" {
			err = errors.New("install the package busybox-static")
		}
		errs = append(errs, err)
		add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755}, data)
	}
	tools, err := exec.CommandContext(ctx, hostBusybox, "--list").Output()
	errs = append(errs, err)
	for t := range strings.FieldsSeq(string(tools)) {
		if t != "busybox" {
			add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + t, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644},
		[]byte("root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nnobody:x:65534:\n"))
	if err := errors.Join(append(errs, w.Close())...); err != nil {
		return nil, err
	}
	raw := buf.Bytes()
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
		tarball.WithCompressionLevel(gzip.BestSpeed))
}

// OfProgram returns an image that holds one program, at /bin, and links to folders below /usr, where a pod that mounts
// the machine's /usr finds the tools that the program calls.
func OfProgram(ctx context.Context, program string) (v1.Image, error) {
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	at := "bin/" + filepath.Base(program)
	errs := []error{w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: at, Mode: 0o755, Size: int64(len(data))})}
	_, err = w.Write(data)
	errs = append(errs, err)
	for _, dir := range []string{"lib", "lib64", "sbin"} {
		errs = append(errs, w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: dir, Linkname: "usr/" + dir,
			Mode: 0o777}))
	}
	if err := errors.Join(append(errs, w.Close())...); err != nil {
		return nil, fmt.Errorf("build image of %s: %w", program, err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	}, tarball.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	return configured(img, arch(ctx), v1.Config{Env: []string{"PATH=/bin:/usr/sbin:/usr/bin"},
		Entrypoint: []string{"/" + at}})
}

// configured returns the image with an architecture and a configuration for its containers.
func configured(img v1.Image, arch string, c v1.Config) (v1.Image, error) {
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture, cfg.Config = "linux", arch, c
	return mutate.ConfigFile(img, cfg)
}

// Write writes the named images into one archive. The name's ending chooses the form: .oci.tar is an OCI
// layout, all others are what `docker save` writes; .tar.gz and .tar.zst are compressed. The file appears
// under its name when it is complete.
func (s Set) Write(path string, refs ...string) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".part-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // renamed away when all went well
	var w io.WriteCloser = tmp
	switch {
	case strings.HasSuffix(path, ".gz"):
		w = gzip.NewWriter(tmp)
	case strings.HasSuffix(path, ".zst"):
		if w, err = zstd.NewWriter(tmp); err != nil {
			return err
		}
	}
	if strings.Contains(filepath.Base(path), ".oci.tar") {
		err = s.writeOCI(w, refs)
	} else {
		err = s.writeDocker(w, refs)
	}
	if w != tmp {
		err = errors.Join(err, w.Close())
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(tmp.Name(), path)
}

func (s Set) writeDocker(w io.Writer, refs []string) error {
	images := map[name.Tag]v1.Image{}
	for _, r := range refs {
		tag, err := name.NewTag(r)
		if err != nil {
			return err
		}
		images[tag] = s[r]
	}
	return tarball.MultiWrite(images, w)
}

func (s Set) writeOCI(w io.Writer, refs []string) error {
	dir, err := os.MkdirTemp("", "umiak-oci-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	for _, r := range refs {
		// containerd takes the name from its own annotation; the OCI one holds only a tag.
		note := layout.WithAnnotations(map[string]string{"io.containerd.image.name": r,
			"org.opencontainers.image.ref.name": r})
		if err := l.AppendImage(s[r], note); err != nil {
			return err
		}
	}
	t := tar.NewWriter(w)
	if err := t.AddFS(os.DirFS(dir)); err != nil {
		return err
	}
	return t.Close()
}

func arch(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "go", "env", "GOARCH").Output()
	if err != nil {
		return "amd64"
	}
	return strings.TrimSpace(string(out))
}
