package logging

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	// maxFile is the size in bytes at which a new log file is begun.
	maxFile = 16 << 20
	// oldFiles is how many older files are kept, as FILE.1 (the newest) to FILE.3.
	oldFiles = 3
)

// logFile appends to a file that only root can read. At maxFile the file becomes FILE.1 and a new one is begun; where
// another program has moved the file away, a new one is begun as well. The handlers of slog call Write one at a time.
type logFile struct {
	path    string
	maxSize int64
	file    *os.File
	size    int64
}

// openLogFile opens a log file, and makes its folder.
func openLogFile(path string, maxSize int64) (*logFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("log: make its folder: %w", err)
	}
	l := &logFile{path: path, maxSize: maxSize}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("log: open the file: %w", err)
	}
	return l, nil
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.Mode().IsRegular() && st.Mode().Perm()&^0o600 != 0 {
		err = f.Chmod(0o600) // one that another program has made; at high verbosity the log shows Secrets
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.file, l.size = f, st.Size()
	return nil
}

// Write appends one line.
func (l *logFile) Write(line []byte) (int, error) {
	if err := l.follow(int64(len(line))); err != nil {
		return 0, err
	}
	n, err := l.file.Write(line)
	l.size += int64(n)
	return n, err
}

// follow opens the file into which more bytes are to be written.
func (l *logFile) follow(more int64) error {
	if l.file != nil {
		at, err := os.Stat(l.path)
		own, errOwn := l.file.Stat()
		moved := errors.Is(err, fs.ErrNotExist) || err == nil && errOwn == nil && !os.SameFile(at, own)
		full := l.size > 0 && l.size+more > l.maxSize && regular(own)
		if !moved && !full {
			return nil
		}
		if !moved {
			if err := l.shift(); err != nil {
				return err
			}
		}
		_ = l.file.Close() // each line was written already
		l.file = nil
	}
	return l.open()
}

// regular reports whether a file has a size that ends: a terminal or a pipe has none.
func regular(info fs.FileInfo) bool { return info != nil && info.Mode().IsRegular() }

// shift renames the file to FILE.1, FILE.1 to FILE.2 and so on. The oldest is replaced.
func (l *logFile) shift() error {
	for i := oldFiles; i > 0; i-- {
		from := l.path
		if i > 1 {
			from = fmt.Sprintf("%s.%d", l.path, i-1)
		}
		if err := os.Rename(from, fmt.Sprintf("%s.%d", l.path, i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// tee writes each line to the main writer and to a file. What fails at the file is written to the main writer once,
// until the file can be written again: a full disk must not end the log.
type tee struct {
	main   io.Writer
	file   io.Writer
	failed bool
}

// alsoTo returns a writer to main and to a log file.
func alsoTo(main io.Writer, path string) (io.Writer, error) {
	f, err := openLogFile(path, maxFile)
	if err != nil {
		return nil, err
	}
	return &tee{main: main, file: f}, nil
}

// Write returns the result of the main writer.
func (t *tee) Write(line []byte) (int, error) {
	n, err := t.main.Write(line)
	_, fileErr := t.file.Write(line)
	if fileErr != nil && !t.failed {
		fmt.Fprintf(t.main, "log: write the file: %v\n", fileErr)
	}
	t.failed = fileErr != nil
	return n, err
}
