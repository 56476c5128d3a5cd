// Package datadisk detects that the disk with the data of a node is not mounted, before a new, empty node is created
// in the folder below.
//
// A note beside the settings, outside the data directory, records the mark of the data that were used last and the
// mounted file system that they were on. A file in the data directory has the same mark. Data without that mark on
// another file system are not those of the node.
//
// Both programs call it when they start; uninstall reads the notes. It imports internal/mounted and
// internal/atomicfile.
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

// File is the name of the file of notes in the folder of settings.
const File = "data.json"

// markFile is the name of the file with the mark in the data directory.
const markFile = "mark"

// Note describes the data that a node has in a data directory.
type Note struct {
	DataDir string `json:"dataDir"`
	RunDir  string `json:"runDir"`
	// Place identifies the file system that the data are on, see mounted.At; empty if that is unknown.
	Place string `json:"place"`
	// Mark is a random text that is also in the data directory. It is written here first.
	Mark string `json:"mark"`
}

// ErrMissing means that the data directory does not have the data of the node.
var ErrMissing = errors.New("the data of this node are not there")

// Check returns an error that wraps ErrMissing if the data directory is on another file system than that of the note
// and does not have the mark of the note. etc is the folder of settings.
func Check(etc, dataDir string) error {
	notes, err := Read(etc)
	if err != nil {
		return err
	}
	n, noted := notes.of(dataDir)
	if !noted || n.Place == "" || mounted.Still(dataDir, n.Place) || read(dataDir) == n.Mark {
		return nil
	}
	return fmt.Errorf("%w: %s is not on the disk on which they were; mount that, and umiak starts; for a new node "+
		"or cluster instead, uninstall umiak, or remove %s",
		ErrMissing, dataDir, filepath.Join(etc, File))
}

// Keep writes a note that the data in the data directory are those of the node. It does nothing if the folder of
// settings does not exist.
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
	// The data on another file system get a new mark, so that a copy left on the old one is not accepted later.
	next := Note{DataDir: dataDir, RunDir: runDir, Place: place, Mark: rand.Text()}
	if err := notes.with(next).write(etc); err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(dataDir, markFile), []byte(next.Mark+"\n"), 0o600); err != nil {
		return fmt.Errorf("mark the data: %w", err)
	}
	return nil
}

// Forget removes the note about a data directory, if there is one.
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

// Notes are the notes in a folder of settings.
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
		return nil, fmt.Errorf("read the note about the disk of the data, %s: %w", filepath.Join(etc, File), err)
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
			return fmt.Errorf("remove the note about the disk of the data: %w", err)
		}
		return nil
	}
	raw, err := json.MarshalIndent(all, "", "  ")
	if err == nil {
		err = atomicfile.Write(file, append(raw, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write the note about the disk of the data: %w", err)
	}
	return nil
}

// read returns the mark in a data directory, empty if there is none.
func read(dataDir string) string {
	raw, err := os.ReadFile(filepath.Join(dataDir, markFile))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}
