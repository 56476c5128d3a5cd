package images

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

// identity identifies an unchanged file without reading it. A change of content changes the inode's change time, which
// no program can set.
type identity struct {
	Size  int64  `json:"size"`
	Inode uint64 `json:"inode"`
	Mtime int64  `json:"mtime"`
	Ctime int64  `json:"ctime"`
}

func identify(f interface{ Stat() (fs.FileInfo, error) }) (identity, error) {
	st, err := f.Stat()
	if err != nil {
		return identity{}, err
	}
	if !st.Mode().IsRegular() {
		return identity{}, errors.New("not a regular file")
	}
	id := identity{Size: st.Size(), Mtime: st.ModTime().UnixNano()}
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		id.Inode, id.Ctime = s.Ino, s.Ctim.Nano()
	}
	return id, nil
}

// record is what the importer stores about an archive.
type record struct {
	identity
	imported
	// Place identifies the mounted file system that the folder was on (mounted.At); an archive's absence counts only
	// there. It is "" in records of older versions.
	Place string `json:"place,omitempty"`
}

// loadState reads the records. It ignores a damaged file: the archives are imported again.
func loadState(path string) (map[string]record, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]record{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the import records: %w", err)
	}
	m := map[string]record{}
	if err := json.Unmarshal(b, &m); err != nil {
		return map[string]record{}, nil
	}
	return m, nil
}

func saveState(path string, m map[string]record) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, b, 0o600)
}

// hashFile returns the SHA-256 hash of what r holds.
func hashFile(r io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
