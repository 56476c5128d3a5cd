package termtext

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Terminal returns f, behind a Writer if it is a terminal: what goes to a file or a pipe stays as it is.
func Terminal(f *os.File) io.Writer {
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return f
	}
	return NewWriter(f)
}

// Writer shows control characters, ECMA-48's C0 and C1, as question marks, besides tab, line feed and carriage return.
type Writer struct {
	w io.Writer
	// c2 is set after the first of two bytes that may be a control character of C1 in UTF-8.
	c2 bool
}

// NewWriter returns a Writer on w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write implements io.Writer. It writes all or returns an error.
func (t *Writer) Write(p []byte) (int, error) {
	out := make([]byte, 0, len(p)+1)
	for _, b := range p {
		if t.c2 {
			t.c2 = false
			if b >= 0x80 && b < 0xa0 {
				out = append(out, '?')
				continue
			}
			out = append(out, 0xc2)
		}
		switch {
		case b == 0xc2:
			t.c2 = true
		case b == '\t' || b == '\n' || b == '\r':
			out = append(out, b)
		case b < ' ' || b == 0x7f:
			out = append(out, '?')
		default:
			out = append(out, b)
		}
	}
	if _, err := t.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}
