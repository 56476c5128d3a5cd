package sharedfiles

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/pki"
)

// last is the file that Place writes last: where it is, all are.
const last = "pki/" + string(pki.ServerCA) + ".crt"

// required reports whether every server has the file. The others exist during a rotation, or as long as a token is not
// rotated.
func required(name string) bool {
	switch filepath.Ext(name) {
	case ".key":
		return true
	case ".crt":
		return !strings.HasSuffix(name, "-old.crt") && !strings.HasSuffix(name, "-next.crt")
	}
	return name == "encryption-config.yaml"
}

// mode is a file's, whatever it was on the server that it comes from.
func mode(name string) fs.FileMode {
	switch filepath.Ext(name) {
	case ".crt", ".pub":
		return 0o644
	}
	return 0o600
}

// names are the files, below data-dir/server.
func names(d layout.Dirs) []string {
	rel := func(path string) string { return filepath.ToSlash(path[len(d.Server())+1:]) }
	out := []string{rel(d.EncryptionConfig()), rel(d.ServerToken()), rel(d.AgentToken())}
	for _, f := range pki.SharedFiles() {
		if name := "pki/" + f; name != last {
			out = append(out, name)
		}
	}
	return append(out, last)
}

// Collect reads the files of this server.
func Collect(d layout.Dirs) ([]joinwire.File, error) {
	var out []joinwire.File
	for _, name := range names(d) {
		raw, err := os.ReadFile(filepath.Join(d.Server(), filepath.FromSlash(name)))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("collect the cluster's keys: %w", err)
		}
		out = append(out, joinwire.File{Name: name, Data: raw})
	}
	if err := complete(d, out); err != nil {
		return nil, fmt.Errorf("collect the cluster's keys: %w", err)
	}
	return out, nil
}

// complete fails where a file is not there that must be.
func complete(d layout.Dirs, files []joinwire.File) error {
	for _, name := range names(d) {
		if required(name) && !slices.ContainsFunc(files,
			func(f joinwire.File) bool { return f.Name == name && len(f.Data) > 0 }) {
			return fmt.Errorf("%s is missing", name)
		}
	}
	return nil
}

// Place writes another server's files here. It may be broken off and called again; see Placed.
func Place(d layout.Dirs, files []joinwire.File) error {
	fail := func(err error) error { return fmt.Errorf("write the cluster's keys: %w", err) }
	known := names(d)
	for _, f := range files {
		if !slices.Contains(known, f.Name) { // a path of somebody else's choice is not written
			return fail(fmt.Errorf("%q is none of them: the other server must be of another release", f.Name))
		}
	}
	if err := complete(d, files); err != nil {
		return fail(err)
	}
	for _, dir := range []string{d.Server(), d.ServerPKI()} {
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
			return fail(err)
		}
	}
	for _, name := range known { // in their order
		path := filepath.Join(d.Server(), filepath.FromSlash(name))
		i := slices.IndexFunc(files, func(f joinwire.File) bool { return f.Name == name })
		if i < 0 {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fail(err)
			}
			continue
		}
		if err := pki.WriteIfChanged(path, files[i].Data, mode(name)); err != nil {
			return fail(err)
		}
	}
	return nil
}

// Placed reports whether all required files are in the directories.
func Placed(d layout.Dirs) bool {
	_, err := os.Stat(filepath.Join(d.Server(), filepath.FromSlash(last)))
	return err == nil
}

// joinedFile marks a server whose keys came from another one.
func joinedFile(d layout.Dirs) string { return filepath.Join(d.Server(), "joined") }

// MarkJoined records that this server is not the first of its cluster. It comes before Place.
func MarkJoined(d layout.Dirs) error {
	if err := os.MkdirAll(d.Server(), 0o700); err != nil {
		return fmt.Errorf("record that this server joins: %w", err)
	}
	return pki.WriteIfChanged(joinedFile(d), []byte("this server's keys are those of the cluster that it joined\n"),
		0o600)
}

// UnmarkJoined makes this server the first of its cluster.
func UnmarkJoined(d layout.Dirs) error {
	if err := os.Remove(joinedFile(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record that this server is the cluster's first: %w", err)
	}
	return nil
}

// Joined reports whether this server is not the first of its cluster. It is false for one that joined with a release
// that kept no such record.
func Joined(d layout.Dirs) bool {
	_, err := os.Stat(joinedFile(d))
	return err == nil
}
