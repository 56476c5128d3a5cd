package upgrade

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/internal/instance"
)

// Script is the file in Config.Etc that install.sh leaves of itself.
const Script = "install.sh"

// Config says to what.
type Config struct {
	Etc     string // the folder of settings
	Version string // of a release, where install.sh finds those
	Base    string // where that is, if it is another place than the last time
	From    string // or an archive of one, or its folder
	Lock    string // a file; whoever upgrades this node holds its lock
	DryRun  bool
	Out     io.Writer
}

// ErrNotInstalled means that there is no Script.
var ErrNotInstalled = errors.New("umiak was not installed here by install.sh; replace the program yourself and restart it")

// Run upgrades and returns when the new version is ready, or the old one is back: then with an error.
func Run(ctx context.Context, cfg Config) error {
	script := filepath.Join(cfg.Etc, Script)
	if _, err := os.Stat(script); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", script, ErrNotInstalled)
	}
	if (cfg.Version == "") == (cfg.From == "") {
		return errors.New("say either --version or --from")
	}
	release, err := instance.Hold(cfg.Lock)
	if err != nil {
		return fmt.Errorf("another upgrade of this node is running: %w", err)
	}
	defer release()
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "UMIAK_") }) // it would keep them
	if cfg.From != "" {
		dir, remove, err := folder(cfg.From)
		if err != nil {
			return fmt.Errorf("release in %s: %w", cfg.From, err)
		}
		defer remove()
		env = append(env, "INSTALL_UMIAK_SOURCE="+dir)
	} else {
		env = append(env, "INSTALL_UMIAK_VERSION="+cfg.Version)
		if cfg.Base != "" {
			env = append(env, "INSTALL_UMIAK_BASE_URL="+cfg.Base)
		}
	}
	args := []string{script}
	if cfg.DryRun {
		args = append(args, "--dry-run")
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, cfg.Out, cfg.Out
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it puts back what it has begun
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("not upgraded: install.sh: %w", err)
	}
	return nil
}

// folder returns where the files of a release are, and what removes them if they were unpacked for it.
func folder(from string) (dir string, remove func(), err error) {
	if from, err = filepath.Abs(from); err != nil {
		return "", nil, err
	}
	info, err := os.Stat(from)
	if err != nil {
		return "", nil, err
	}
	if info.IsDir() {
		return from, func() {}, nil
	}
	if dir, err = os.MkdirTemp("", "umiak-upgrade-"); err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) }
	f, err := os.Open(from)
	if err == nil {
		err = errors.Join(unpack(f, dir), f.Close())
	}
	if err != nil {
		remove()
		return "", nil, err
	}
	return dir, remove, nil
}

const (
	maxFiles = 1000
	maxBytes = 4 << 30
)

// unpack writes the files of an archive into one folder. Which folder they had in the archive does not matter.
func unpack(r io.Reader, dir string) error {
	archive, left := tar.NewReader(r), int64(maxBytes)
	for n := 0; ; n++ {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) && n > 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		name := filepath.Base(filepath.Clean("/" + h.Name))
		switch {
		case h.Typeflag != tar.TypeReg || name == "/":
			return fmt.Errorf("%q in the archive is no file", h.Name)
		case n >= maxFiles:
			return fmt.Errorf("the archive has more than %d files", maxFiles)
		case h.Size > left:
			return fmt.Errorf("the archive has more than %d GiB", maxBytes>>30)
		}
		left -= h.Size
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, archive)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("unpack %s: %w", name, err)
		}
	}
}
