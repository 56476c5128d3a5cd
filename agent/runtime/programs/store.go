package programs

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

const (
	current      = "current"       // a link to the folder in use
	manifestName = "manifest.json" // lists the files of a folder
	verifiedName = "verified"      // holds the boot ID of the last content check
	tempPrefix   = ".tmp-"
)

// store is the folder of unpacked archives: one subfolder per archive, named after its content.
type store struct {
	dir    string
	bootID string
	inUse  func(dir string) (bool, error)
}

// manifest lists the files of one archive.
type manifest struct {
	Files map[string]file `json:"files"`
}

type file struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// install links dir/current to the unpacked archive with the given id, unpacks it first if necessary, and removes other
// archives that no process uses.
func (s store) install(ctx context.Context, id string, archive []byte) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	home := filepath.Join(s.dir, id)
	if err := s.check(ctx, home); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := s.replace(ctx, home, archive); err != nil {
			return err
		}
	}
	if to, err := os.Readlink(filepath.Join(s.dir, current)); err != nil || to != id {
		if err := s.link(id); err != nil {
			return err
		}
	}
	return s.sweep(id)
}

// check returns an error unless the folder holds a complete archive. It compares sizes at every start, and content once
// per boot: a file that was synced and renamed can only be damaged by a power failure or the disk.
func (s store) check(ctx context.Context, home string) error {
	text, err := os.ReadFile(filepath.Join(home, manifestName))
	if err != nil {
		return err
	}
	var m manifest
	if err := json.Unmarshal(text, &m); err != nil || len(m.Files) == 0 {
		return fmt.Errorf("read the manifest: %w", errors.Join(err, fs.ErrInvalid))
	}
	for name, want := range m.Files {
		st, err := os.Lstat(filepath.Join(home, name))
		if err != nil {
			return err
		}
		if st.Size() != want.Size || !st.Mode().IsRegular() || st.Mode().Perm() != 0o755 {
			return fmt.Errorf("%s differs from what was unpacked", name)
		}
	}
	if b, err := os.ReadFile(filepath.Join(home, verifiedName)); err == nil && s.bootID != "" && string(b) == s.bootID {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for name, want := range m.Files {
		g.Go(func() error {
			if got, err := hash(ctx, filepath.Join(home, name)); err != nil || got != want.SHA256 {
				return fmt.Errorf("%s is damaged: %w", name, errors.Join(err, fs.ErrInvalid))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(home, verifiedName), []byte(s.bootID), 0o600)
}

func hash(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	h := sha256.New()
	if _, err := io.Copy(h, reader{ctx, f}); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// reader fails once its context has ended.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// replace unpacks the archive into a temporary folder, syncs it and renames it to home.
func (s store) replace(ctx context.Context, home string, archive []byte) (err error) {
	tmp, err := os.MkdirTemp(s.dir, tempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	m, err := extract(ctx, tmp, archive)
	if err != nil {
		return err
	}
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := errors.Join(
		atomicfile.Write(filepath.Join(tmp, manifestName), text, 0o600),
		os.WriteFile(filepath.Join(tmp, verifiedName), []byte(s.bootID), 0o600),
		os.Chmod(tmp, 0o755),
	); err != nil {
		return err
	}
	// Remove a damaged folder of the same name; processes that run from it keep their open files.
	if err := os.RemoveAll(home); err != nil {
		return err
	}
	if err := os.Rename(tmp, home); err != nil {
		return err
	}
	return atomicfile.SyncDir(s.dir)
}

// extract writes the archive's files below dir and syncs them.
func extract(ctx context.Context, dir string, archive []byte) (manifest, error) {
	m := manifest{Files: map[string]file{}}
	// At most two goroutines and a bounded window: a start must not allocate memory that nothing needs later.
	z, err := zstd.NewReader(bytes.NewReader(archive), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return m, err
	}
	defer z.Close()
	dirs := map[string]bool{dir: true}
	for t := tar.NewReader(reader{ctx, z}); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return m, err
		}
		name := strings.TrimSuffix(h.Name, "/")
		if !filepath.IsLocal(name) {
			return m, fmt.Errorf("path %q leaves the folder", h.Name)
		}
		at := filepath.Join(dir, name)
		switch h.Typeflag {
		case tar.TypeDir:
			if err := os.Mkdir(at, 0o755); err != nil {
				return m, err
			}
			dirs[at] = true
		case tar.TypeReg:
			f, err := extractFile(at, t)
			if err != nil {
				return m, err
			}
			m.Files[name] = f
		case tar.TypeLink:
			f, ok := m.Files[h.Linkname]
			if !ok {
				return m, fmt.Errorf("%s links to %s, which is not in the archive", name, h.Linkname)
			}
			if err := os.Link(filepath.Join(dir, h.Linkname), at); err != nil {
				return m, err
			}
			m.Files[name] = f
		default:
			return m, fmt.Errorf("%s is neither a file nor a folder", name)
		}
	}
	for d := range dirs {
		if err := atomicfile.SyncDir(d); err != nil {
			return m, err
		}
	}
	return m, nil
}

func extractFile(at string, r io.Reader) (file, error) {
	f, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return file{}, err
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), r)
	if err := errors.Join(err, f.Chmod(0o755), f.Sync(), f.Close()); err != nil {
		return file{}, err
	}
	return file{Size: n, SHA256: hex.EncodeToString(h.Sum(nil))}, nil
}

// link points dir/current at the folder id, atomically.
func (s store) link(id string) error {
	tmp := filepath.Join(s.dir, tempPrefix+current)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := errors.Join(os.Symlink(id, tmp), os.Rename(tmp, filepath.Join(s.dir, current))); err != nil {
		return err
	}
	return atomicfile.SyncDir(s.dir)
}

// sweep removes the temporary files of an interrupted start, and folders from which no process runs.
func (s store) sweep(id string) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == id || e.Name() == current {
			continue
		}
		old := filepath.Join(s.dir, e.Name())
		if !strings.HasPrefix(e.Name(), tempPrefix) {
			if used, err := s.inUse(old); err != nil || used {
				continue // the next start checks again
			}
		}
		if err := os.RemoveAll(old); err != nil {
			return fmt.Errorf("remove old programs: %w", err)
		}
	}
	return nil
}

// bootID identifies this boot of the machine; it is "" if the kernel does not provide an ID.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// inUse reports whether a process runs a program from the folder. It compares files by identity, because a process may
// have its own mount namespace.
func inUse(dir string) (bool, error) {
	var programs []fs.FileInfo
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		st, err := os.Stat(p)
		programs = append(programs, st)
		return err
	})
	if err != nil {
		return false, err
	}
	procs, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return false, err
	}
	for _, p := range procs {
		st, err := os.Stat(p)
		if err != nil {
			continue // gone, or a kernel thread
		}
		for _, p := range programs {
			if os.SameFile(st, p) {
				return true, nil
			}
		}
	}
	return false, nil
}
