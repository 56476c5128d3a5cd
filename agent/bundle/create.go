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

// Config says what goes into a bundle.
type Config struct {
	Out      string   // the file to write
	Release  string   // folder, archive or URL of one; "" for the one that this node was installed from
	Key      string   // file with the public key that releases are signed with; "" for the one that this node trusts
	Etc      string   // this node's settings, with what install.sh noted in them
	Arches   []string // what machines it is for, in Go's names
	Programs bool     // with the programs: without, it is for nodes that have this very version

	Images       []string // of this node's store
	Archives     []string // of images
	AllPlatforms bool     // keep what images have for other machines, too
	Socket       string   // containerd's

	Manifests    []string // files and folders
	ServerConfig string   // a file of settings
	AgentConfig  string

	DryRun   bool
	Progress io.Writer
}

// Created is what Create made.
type Created struct {
	File string `json:"file"`
	Size int64  `json:"size"`
	Contents
}

// folder is the one in a bundle's archive.
const folder = "umiak-bundle"

// platforms are those of the architectures that there are releases for.
var platforms = map[string]string{"amd64": "linux/amd64", "arm64": "linux/arm64", "arm": "linux/arm/v7", "riscv64": "linux/riscv64"}

// Create makes a bundle. Its file appears when it is whole.
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
		return Created{}, fmt.Errorf("make room for the bundle: %w", err)
	}
	defer os.RemoveAll(stage) //nolint:errcheck // a temporary folder
	b := &builder{cfg: cfg, stage: filepath.Join(stage, folder)}
	for _, f := range folders {
		if err := os.MkdirAll(filepath.Join(b.stage, f), 0o700); err != nil {
			return Created{}, err
		}
	}
	// What may be wrong and is read quickly comes first.
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
	b.say("writing %s", cfg.Out)
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
		errs = append(errs, errors.New("--out: which file?"))
	}
	if len(c.Arches) == 0 {
		errs = append(errs, errors.New("--arch: for which machines?"))
	}
	for _, a := range c.Arches {
		if platforms[a] == "" {
			errs = append(errs, fmt.Errorf("--arch: %q is not one of %s", a, strings.Join(slices.Sorted(maps.Keys(platforms)), ", ")))
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

func (b *builder) say(format string, a ...any) { fmt.Fprintf(b.cfg.Progress, format+"\n", a...) }

// images packs each image of the store into an archive of its own, so that the next bundle brings only those that are
// new; and each archive that was given into one.
func (b *builder) images(ctx context.Context) error {
	keep := images.Selection{All: b.cfg.AllPlatforms}
	for _, a := range b.cfg.Arches {
		keep.Platforms = append(keep.Platforms, platforms[a])
	}
	taken := map[string]string{}
	add := func(name, from string, pack func(file string) ([]string, error)) error {
		name = archiveName(name)
		if before, ok := taken[name]; ok {
			return fmt.Errorf("%s and %s would have the same name in the bundle, %s", before, from, name)
		}
		taken[name] = from
		b.planned.Images = append(b.planned.Images, name)
		b.say("packing %s", from)
		names, err := pack(filepath.Join(b.stage, imagesDir, name))
		if err != nil {
			return fmt.Errorf("pack %s: %w", from, err)
		}
		for _, n := range names {
			b.say("  %s", n)
		}
		return nil
	}
	for _, ref := range b.cfg.Images {
		err := add(ref, ref, func(file string) ([]string, error) {
			if b.cfg.DryRun {
				return nil, images.CheckPackable(ctx, b.cfg.Socket, ref, keep)
			}
			return nil, images.Pack(ctx, b.cfg.Socket, ref, file, keep)
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
			return images.Repack(ctx, from, file, keep)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// archiveName makes a file's name of an image's or an archive's: registry.lan:5000/app:1 is registry.lan_5000_app_1.tar.zst.
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

// finish writes what people read, and the sums of all files.
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
			return fmt.Errorf("%s: only letters, digits and . _ + - can be in the names of a bundle's files", name)
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

// then is the time of all files in a bundle, so that the same contents are the same file.
var then = time.Unix(315532800, 0) // 1980, which no tool takes for a mistake

// writeTar writes files of a folder to an archive, in the order of their names, and to the disk. It may hold tokens.
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
	h := &tar.Header{Name: folder + "/" + name, Mode: 0o644, Size: info.Size(), ModTime: then, Format: tar.FormatPAX}
	if name == "install.sh" {
		h.Mode = 0o755
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(w, in)
	return err
}
