package termtext

import (
	"bytes"
	"os"
	"testing"
)

func TestWriter(t *testing.T) {
	for in, want := range map[string]string{
		"NAME\tSTATE\nä£ 日本\n":            "NAME\tSTATE\nä£ 日本\n",
		"\x1b]0;title\x07\x1b[2Jgone\x7f": "?]0;title??[2Jgone?",
		"\u009b31mred\u0080":              "?31mred?",
		"10 %\r20 %\r\n":                  "10 %\r20 %\r\n",
	} {
		var whole, bytewise bytes.Buffer
		if n, err := NewWriter(&whole).Write([]byte(in)); n != len(in) || err != nil {
			t.Errorf("%q: wrote %d, %v", in, n, err)
		}
		w := NewWriter(&bytewise)
		for i := range len(in) {
			if _, err := w.Write([]byte{in[i]}); err != nil {
				t.Error(err)
			}
		}
		if whole.String() != want || bytewise.String() != want {
			t.Errorf("%q: got %q and, byte by byte, %q", in, &whole, &bytewise)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if Terminal(w) != w {
		t.Error("a pipe is taken for a terminal")
	}
}
