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

// identity tells, without reading it, that a file is the one it was. A change of content changes the
// inode's change time, which no program can set.
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
		return identity{}, errors.New("is not a regular file")
	}
	id := identity{Size: st.Size(), Mtime: st.ModTime().UnixNano()}
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		id.Inode, id.Ctime = s.Ino, s.Ctim.Nano()
	}
	return id, nil
}

// known is what is noted of an archive.
type known struct {
	identity
	imported
	// Place is the mounted file system that the folder was on (mounted.At): only there the archive's absence means anything. It is empty
	// in the notes of versions before it.
	Place string `json:"place,omitempty"`
}

// loadState reads the notes. Damaged notes are no notes: the archives are imported again.
func loadState(path string) (map[string]known, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]known{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what was imported: %w", err)
	}
	m := map[string]known{}
	if err := json.Unmarshal(b, &m); err != nil {
		return map[string]known{}, nil
	}
	return m, nil
}

func saveState(path string, m map[string]known) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, b, 0o600)
}

// hashFile reads a file for its hash alone.
func hashFile(r io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
