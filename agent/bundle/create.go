package bundle

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/umiak-io/umiak/agent/runtime/images"
	"github.com/umiak-io/umiak/internal/atomicfile"
)

// Config describes a bundle to create.
type Config struct {
	Out      string   // the file to write
	Release  string   // a release's folder, archive or URL; "" means the one that this node was installed from
	Key      string   // file with the public key of releases; "" means the one that this node trusts
	Etc      string   // this node's settings folder, with install.sh's records
	Arches   []string // architectures of the target machines, as GOARCH
	Programs bool     // include the programs; without them, the bundle is for nodes of this version

	Images       []string // names of images in this node's store
	Archives     []string // image archives
	AllPlatforms bool     // include the images' content for other platforms
	Socket       string   // containerd's socket

	Manifests    []string // files and folders
	ServerConfig string   // a file of settings
	AgentConfig  string

	DryRun   bool
	Progress io.Writer
}

// Created describes a bundle that Create has written.
type Created struct {
	File string `json:"file"`
	Size int64  `json:"size"`
	Contents
}

// folder is the top-level folder in a bundle's archive.
const folder = "umiak-bundle"

// platforms maps the architectures of releases to image platforms.
var platforms = map[string]string{"amd64": "linux/amd64", "arm64": "linux/arm64", "arm": "linux/arm/v7",
	"riscv64": "linux/riscv64"}

// Create creates a bundle. The file appears once it is complete.
func Create(ctx context.Context, cfg Config) (Created, error) {
	if err := cfg.check(); err != nil {
		return Created{}, err
	}
	dir := filepath.Dir(cfg.Out)
	if cfg.DryRun {
		dir = os.TempDir()
	}
	stage, err := os.MkdirTemp(dir, ".umiak-bundle-")
	if err != nil {
		return Created{}, fmt.Errorf("create a temporary folder for the bundle: %w", err)
	}
	defer os.RemoveAll(stage) //nolint:errcheck // a temporary folder
	b := &builder{cfg: cfg, stage: filepath.Join(stage, folder)}
	for _, f := range folders {
		if err := os.MkdirAll(filepath.Join(b.stage, f), 0o700); err != nil {
			return Created{}, err
		}
	}
	// Quick steps that may fail come first.
	for _, step := range []func(context.Context) error{b.settings, b.manifests, b.release, b.images} {
		if err := step(ctx); err != nil {
			return Created{}, err
		}
	}
	if cfg.DryRun {
		return Created{File: cfg.Out, Contents: b.planned.sorted()}, nil
	}
	list, err := b.finish()
	if err != nil {
		return Created{}, err
	}
	file := filepath.Join(stage, "bundle.tar")
	b.printf("writing %s", cfg.Out)
	if err := writeTar(ctx, file, b.stage, append(slices.Sorted(maps.Keys(list)), Sums)); err != nil {
		return Created{}, fmt.Errorf("write bundle: %w", err)
	}
	info, err := os.Stat(file)
	if err != nil {
		return Created{}, err
	}
	if err := errors.Join(os.Rename(file, cfg.Out), atomicfile.SyncDir(dir)); err != nil {
		return Created{}, fmt.Errorf("write bundle: %w", err)
	}
	return Created{File: cfg.Out, Size: info.Size(), Contents: list.contents()}, nil
}

func (c Config) check() error {
	var errs []error
	if c.Out == "" {
		errs = append(errs, errors.New("--out: a file is required"))
	}
	if len(c.Arches) == 0 {
		errs = append(errs, errors.New("--arch: at least one architecture is required"))
	}
	for _, a := range c.Arches {
		if platforms[a] == "" {
			errs = append(errs, fmt.Errorf("--arch: %q is not one of %s", a,
				strings.Join(slices.Sorted(maps.Keys(platforms)), ", ")))
		}
	}
	return errors.Join(errs...)
}

func (c Contents) sorted() Contents {
	for _, l := range []*[]string{&c.Programs, &c.Images, &c.Manifests, &c.Config} {
		slices.Sort(*l)
		*l = slices.Compact(append([]string{}, *l...)) // never null in JSON
	}
	return c
}

// builder fills the folder of a bundle.
type builder struct {
	cfg     Config
	stage   string
	planned Contents // of a dry run
}

func (b *builder) printf(format string, a ...any) { fmt.Fprintf(b.cfg.Progress, format+"\n", a...) }

// images packs each image of the store into its own archive, so that a later bundle can bring only the new ones, and
// repacks each given archive.
func (b *builder) images(ctx context.Context) error {
	sel := images.Selection{All: b.cfg.AllPlatforms}
	for _, a := range b.cfg.Arches {
		sel.Platforms = append(sel.Platforms, platforms[a])
	}
	taken := map[string]string{}
	add := func(name, from string, pack func(file string) ([]string, error)) error {
		name = archiveName(name)
		if before, ok := taken[name]; ok {
			return fmt.Errorf("%s and %s would have the same name in the bundle, %s", before, from, name)
		}
		taken[name] = from
		b.planned.Images = append(b.planned.Images, name)
		b.printf("packing %s", from)
		names, err := pack(filepath.Join(b.stage, imagesDir, name))
		if err != nil {
			return fmt.Errorf("pack %s: %w", from, err)
		}
		for _, n := range names {
			b.printf("  %s", n)
		}
		return nil
	}
	for _, ref := range b.cfg.Images {
		err := add(ref, ref, func(file string) ([]string, error) {
			if b.cfg.DryRun {
				return nil, images.CheckPackable(ctx, b.cfg.Socket, ref, sel)
			}
			return nil, images.Pack(ctx, b.cfg.Socket, ref, file, sel)
		})
		if err != nil {
			return err
		}
	}
	for _, from := range b.cfg.Archives {
		err := add(filepath.Base(from), from, func(file string) ([]string, error) {
			if b.cfg.DryRun {
				_, err := os.Stat(from)
				return nil, err
			}
			return images.Repack(ctx, from, file, sel)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// archiveName converts an image's or archive's name to a file name: registry.lan:5000/app:1 becomes
// registry.lan_5000_app_1.tar.zst.
func archiveName(name string) string {
	for _, s := range []string{".zst", ".gz", ".tgz", ".tar"} {
		name = strings.TrimSuffix(name, s)
	}
	name = strings.Map(func(r rune) rune {
		if r < 0x80 && part.MatchString("x"+string(r)) {
			return r
		}
		return '_'
	}, name)
	return "i"[:btoi(!part.MatchString(name[:min(1, len(name))]))] + name[:min(len(name), 180)] + ".tar.zst"
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// finish writes the README and the checksums of all files.
func (b *builder) finish() (sums, error) {
	if err := os.WriteFile(filepath.Join(b.stage, "README.txt"), []byte(readme), 0o600); err != nil {
		return nil, err
	}
	list := sums{}
	err := filepath.WalkDir(b.stage, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(b.stage, p)
		if err != nil {
			return err
		}
		if !goodName(name) {
			return fmt.Errorf("%s: names of a bundle's files may contain only letters, digits and . _ + -", name)
		}
		list[name], err = sumOfFile(p)
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, os.WriteFile(filepath.Join(b.stage, Sums), []byte(list.String()), 0o600)
}

const readme = `A bundle of Umiak: all that machines without network need.

  sh install.sh                     installs a server, or brings one up to date
  sh install.sh --help              says how an agent is installed, and what else can be set
  umiak upgrade --from BUNDLE.tar   the same on a node that runs

install.sh checks the programs by the release's signature (SHA256SUMS, SHA256SUMS.sig). Images, manifests and settings are
compared with BUNDLE.SHA256SUMS, which is not signed: that finds damage, not malice. Whoever can write to this folder
decides what runs on the machines that are installed from it.
`

// fileTime is the modification time of all files in a bundle, so that equal content gives an equal file. It is in 1980,
// because some tools reject earlier times.
var fileTime = time.Unix(315532800, 0)

// writeTar writes files of a folder to an archive, sorted by name, and syncs it. The archive may contain tokens.
func writeTar(ctx context.Context, file, dir string, names []string) (err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	slices.Sort(names)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := addFile(w, filepath.Join(dir, name), name); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), f.Sync())
}

func addFile(w *tar.Writer, file, name string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // opened for reading
	info, err := in.Stat()
	if err != nil {
		return err
	}
	h := &tar.Header{Name: folder + "/" + name, Mode: 0o644, Size: info.Size(), ModTime: fileTime,
		Format: tar.FormatPAX}
	if name == "install.sh" {
		h.Mode = 0o755
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(w, in)
	return err
}
