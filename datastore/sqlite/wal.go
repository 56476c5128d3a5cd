package sqlite

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// walInfo is a summary of a write-ahead log.
type walInfo struct {
	Frames  int // valid frames, up to and including the last valid commit
	Behind  int // frames of the same generation after the first invalid one
	Commits int // commits among those, but for one in the last frame
}

// damaged reports whether acknowledged commits are lost. A power cut can leave only pieces of the last transaction,
// since each one is synced before the next begins. A frame after a commit after an invalid frame therefore means that
// the invalid frame was valid once.
func (i walInfo) damaged() bool { return i.Commits > 0 }

// parseWAL reads a write-ahead log as SQLite does (https://www.sqlite.org/fileformat2.html#walformat), and reads on
// where SQLite stops. An empty or incomplete header is no error: such a log has no frames.
func parseWAL(r io.Reader) (walInfo, error) {
	var info walInfo
	head := make([]byte, 32)
	if _, err := io.ReadFull(r, head); err != nil {
		return info, ignoreEOF(err)
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch binary.BigEndian.Uint32(head) {
	case 0x377f0682:
	case 0x377f0683:
		order = binary.BigEndian
	default:
		return info, nil
	}
	size := binary.BigEndian.Uint32(head[8:])
	if size < 512 || size > 65536 || size&(size-1) != 0 {
		return info, nil
	}
	var a, b uint32
	sum := func(p []byte) {
		for ; len(p) >= 8; p = p[8:] {
			a += order.Uint32(p) + b
			b += order.Uint32(p[4:]) + a
		}
	}
	sum(head[:24])
	if a != binary.BigEndian.Uint32(head[24:]) || b != binary.BigEndian.Uint32(head[28:]) {
		return info, nil
	}
	frame := make([]byte, 24+size)
	valid, pending := true, 0
	commitBehind := false
	for {
		if _, err := io.ReadFull(r, frame); err != nil {
			return info, ignoreEOF(err)
		}
		sameGeneration := string(frame[8:16]) == string(head[16:24])
		commit := binary.BigEndian.Uint32(frame[4:]) != 0
		if valid {
			sum(frame[:8])
			sum(frame[24:])
			valid = sameGeneration && binary.BigEndian.Uint32(frame) != 0 && a == binary.BigEndian.Uint32(frame[16:]) &&
				b == binary.BigEndian.Uint32(frame[20:])
		}
		switch {
		case valid:
			pending++
			if commit {
				info.Frames += pending
				pending = 0
			}
		case sameGeneration:
			info.Behind++
			if commitBehind {
				info.Commits++
			}
			commitBehind = commit
		}
	}
}

// ignoreEOF returns nil for the end of a file, also within a frame.
func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// inspectWAL checks the write-ahead log before SQLite opens it, which silently stops at the first invalid frame and
// overwrites the rest. If acknowledged commits follow that frame, inspectWAL copies the files into a broken-* folder
// and reports the loss.
func (s *Store) inspectWAL() error {
	path := s.path + "-wal"
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := parseWAL(bufio.NewReaderSize(f, 1<<18))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if !info.damaged() {
		return nil
	}
	kept, err := keepDir(filepath.Dir(s.path))
	if err != nil {
		return err
	}
	for _, p := range []string{s.path, path} {
		if err := copyFile(p, filepath.Join(kept, filepath.Base(p))); err != nil {
			return fmt.Errorf("keep a copy of %s: %w", p, err)
		}
	}
	rep := &Recovery{At: time.Now().UTC(), Kept: kept, Reason: "the write-ahead log is damaged in the middle",
		Uncertain: fmt.Sprintf("%d pages in at least %d commits behind the damage could not be applied; the state "+
			"is the one before them", info.Behind, info.Commits)}
	if err := writeReport(rep); err != nil {
		return err
	}
	s.jump = true
	s.recovery = rep
	s.log.Error("the datastore's write-ahead log is damaged, going back to the last good commit", "lostPages",
		info.Behind, "lostCommits", info.Commits, "kept", kept)
	return nil
}

func copyFile(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close() //nolint:errcheck // only read
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	return dst.Sync()
}
