package termtext

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Terminal returns a Writer on f if f is a terminal, else f: output to a file or a pipe is not changed.
func Terminal(f *os.File) io.Writer {
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return f
	}
	return NewWriter(f)
}

// Writer replaces the control characters of ECMA-48 (C0 and C1) by question marks, except tab, line feed and carriage
// return.
type Writer struct {
	w io.Writer
	// c2 is set after a byte 0xc2, which begins the UTF-8 form of C1.
	c2 bool
}

// NewWriter returns a Writer on w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write implements io.Writer. It writes all of p or returns an error.
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
