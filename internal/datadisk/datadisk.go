// Package datadisk detects that the disk with the data of a node is not mounted, before a new, empty node is created
// in the folder below.
//
// A record beside the settings, outside the data directory, records the mark of the data that were used last and the
// mounted file system that they were on. A file in the data directory has the same mark. Data without that mark on
// another file system are not those of the node.
//
// Both programs call it when they start; uninstall reads the records. It imports internal/mounted and
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

// File is the name of the file of records in the folder of settings.
const File = "data.json"

// markFile is the name of the file with the mark in the data directory.
const markFile = "mark"

// Record describes the data that a node has in a data directory.
type Record struct {
	DataDir string `json:"dataDir"`
	RunDir  string `json:"runDir"`
	// Place identifies the file system that the data are on, see mounted.At; empty if that is unknown.
	Place string `json:"place"`
	// Mark is a random text that is also in the data directory. It is written here first.
	Mark string `json:"mark"`
}

// ErrMissing means that the data directory does not have the data of the node.
var ErrMissing = errors.New("the data of this node are not there")

// Check returns an error that wraps ErrMissing if the data directory is on another file system than that of the record
// and does not have the mark of the record. etc is the folder of settings.
func Check(etc, dataDir string) error {
	records, err := Read(etc)
	if err != nil {
		return err
	}
	n, found := records.of(dataDir)
	if !found || n.Place == "" || mounted.Still(dataDir, n.Place) || read(dataDir) == n.Mark {
		return nil
	}
	return fmt.Errorf("%w: %s is not on the disk on which they were; mount that, and umiak starts; for a new node "+
		"or cluster instead, uninstall umiak, or remove %s",
		ErrMissing, dataDir, filepath.Join(etc, File))
}

// Save records that the data in the data directory are those of the node. It does nothing if the folder of
// settings does not exist.
func Save(etc, dataDir, runDir string) error {
	if st, err := os.Stat(etc); err != nil || !st.IsDir() {
		return nil
	}
	records, err := Read(etc)
	if err != nil {
		return err
	}
	n, found := records.of(dataDir)
	place, mark := mounted.At(dataDir), read(dataDir)
	if found && n.Place == place && n.RunDir == runDir && mark == n.Mark {
		return nil
	}
	// The data on another file system get a new mark, so that a copy left on the old one is not accepted later.
	next := Record{DataDir: dataDir, RunDir: runDir, Place: place, Mark: rand.Text()}
	if err := records.with(next).write(etc); err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(dataDir, markFile), []byte(next.Mark+"\n"), 0o600); err != nil {
		return fmt.Errorf("mark the data: %w", err)
	}
	return nil
}

// Forget removes the record of a data directory, if there is one.
func Forget(etc, dataDir string) error {
	records, err := Read(etc)
	if err != nil {
		return err
	}
	if _, found := records.of(dataDir); !found {
		return nil
	}
	return records.without(dataDir).write(etc)
}

// Records are the records in a folder of settings.
type Records []Record

// Read reads the records in the folder of settings.
func Read(etc string) (Records, error) {
	raw, err := os.ReadFile(filepath.Join(etc, File))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all Records
	if err == nil {
		err = json.Unmarshal(raw, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("read the record of the disk of the data, %s: %w", filepath.Join(etc, File), err)
	}
	return all, nil
}

func (all Records) of(dataDir string) (Record, bool) {
	for _, n := range all {
		if n.DataDir == filepath.Clean(dataDir) {
			return n, true
		}
	}
	return Record{}, false
}

func (all Records) without(dataDir string) Records {
	var out Records
	for _, n := range all {
		if n.DataDir != filepath.Clean(dataDir) {
			out = append(out, n)
		}
	}
	return out
}

func (all Records) with(n Record) Records {
	n.DataDir = filepath.Clean(n.DataDir)
	return append(all.without(n.DataDir), n)
}

func (all Records) write(etc string) error {
	file := filepath.Join(etc, File)
	if len(all) == 0 {
		if err := os.Remove(file); err != nil {
			return fmt.Errorf("remove the record of the disk of the data: %w", err)
		}
		return nil
	}
	raw, err := json.MarshalIndent(all, "", "  ")
	if err == nil {
		err = atomicfile.Write(file, append(raw, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write the record of the disk of the data: %w", err)
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
