// Package datadisk notices that the disk with a node's data is not there, before a new, empty node comes to be on the disk below.
//
// Beside the settings, outside of the data directory, a note says which data ran here last and on which mounted file system
// they were. The data have the same mark. Data without it on another file system are not the node's.
//
// Both binaries call it at their start; uninstall reads the notes. It imports internal/mounted and what writes files.
package datadisk

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/mounted"
)

// File is the file of notes in the folder of settings.
const File = "data.json"

// markFile is the file in the data directory with the mark.
const markFile = "mark"

// Note says which data were in a data directory.
type Note struct {
	DataDir string `json:"dataDir"`
	RunDir  string `json:"runDir"`
	// Place is the mounted file system that the data were on, see mounted.At.
	Place string `json:"place"`
	// Mark is that of the data. It is written here first.
	Mark string `json:"mark"`
}

// ErrMissing means that the data of the node are not there.
var ErrMissing = errors.New("the data of this node are not there")

// Check returns ErrMissing when what is in the data directory is not what ran here last and is on another file system than that
// was. etc is the folder of settings.
func Check(etc, dataDir string) error {
	notes, err := Read(etc)
	if err != nil {
		return err
	}
	n, noted := notes.of(dataDir)
	if !noted || n.Place == "" || mounted.Still(dataDir, n.Place) || read(dataDir) == n.Mark {
		return nil
	}
	return fmt.Errorf("%w: %s is not on the disk on which they were; mount that, and umiak starts; for a new node or cluster instead, uninstall umiak, or remove %s",
		ErrMissing, dataDir, filepath.Join(etc, File))
}

// Keep notes that the data in the data directory are the node's. Without a folder of settings there is no place for a note.
func Keep(etc, dataDir, runDir string) error {
	if st, err := os.Stat(etc); err != nil || !st.IsDir() {
		return nil
	}
	notes, err := Read(etc)
	if err != nil {
		return err
	}
	n, noted := notes.of(dataDir)
	place, mark := mounted.At(dataDir), read(dataDir)
	if noted && n.Place == place && n.RunDir == runDir && mark == n.Mark {
		return nil
	}
	// A new mark for another file system: a copy of the data that stays behind there must not pass for them later.
	next := Note{DataDir: dataDir, RunDir: runDir, Place: place, Mark: rand.Text()}
	if err := notes.with(next).write(etc); err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(dataDir, markFile), []byte(next.Mark+"\n"), 0o600); err != nil {
		return fmt.Errorf("mark the data: %w", err)
	}
	return nil
}

// Forget removes the note of a data directory.
func Forget(etc, dataDir string) error {
	notes, err := Read(etc)
	if err != nil {
		return err
	}
	if _, noted := notes.of(dataDir); !noted {
		return nil
	}
	return notes.without(dataDir).write(etc)
}

// Notes are all of a folder of settings.
type Notes []Note

// Read reads the notes in the folder of settings.
func Read(etc string) (Notes, error) {
	raw, err := os.ReadFile(filepath.Join(etc, File))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all Notes
	if err == nil {
		err = json.Unmarshal(raw, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("read on which disk the data are, %s: %w", filepath.Join(etc, File), err)
	}
	return all, nil
}

func (all Notes) of(dataDir string) (Note, bool) {
	for _, n := range all {
		if n.DataDir == filepath.Clean(dataDir) {
			return n, true
		}
	}
	return Note{}, false
}

func (all Notes) without(dataDir string) Notes {
	var out Notes
	for _, n := range all {
		if n.DataDir != filepath.Clean(dataDir) {
			out = append(out, n)
		}
	}
	return out
}

func (all Notes) with(n Note) Notes {
	n.DataDir = filepath.Clean(n.DataDir)
	return append(all.without(n.DataDir), n)
}

func (all Notes) write(etc string) error {
	file := filepath.Join(etc, File)
	if len(all) == 0 {
		if err := os.Remove(file); err != nil {
			return fmt.Errorf("forget on which disk the data are: %w", err)
		}
		return nil
	}
	raw, err := json.MarshalIndent(all, "", "  ")
	if err == nil {
		err = atomicfile.Write(file, append(raw, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("note on which disk the data are: %w", err)
	}
	return nil
}

func read(dataDir string) string {
	raw, err := os.ReadFile(filepath.Join(dataDir, markFile))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}
