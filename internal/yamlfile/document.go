package yamlfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Document returns the only document of a file, nil if the file is empty. Its errors begin with the line number.
func Document(raw []byte) (*yaml.Node, error) {
	raw = bytes.TrimPrefix(raw, []byte("\ufeff")) // some editors on Windows write a byte order mark
	if line, ok := notText(raw); ok {
		return nil, fmt.Errorf("%d: this is not text in UTF-8; save the file as UTF-8", line)
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	var only *yaml.Node
	for {
		var doc yaml.Node
		switch err := dec.Decode(&doc); {
		case errors.Is(err, io.EOF):
			return only, nil
		case err != nil:
			return nil, syntax(err, raw)
		}
		if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
			continue
		}
		if only != nil {
			return nil, fmt.Errorf("%d: a second document begins here, which nothing would read; remove the line "+
				"`---` above it", doc.Content[0].Line)
		}
		only = doc.Content[0]
	}
}

// notText returns the first line that has bytes which are not UTF-8, or a NUL, and whether there is one.
func notText(raw []byte) (int, bool) {
	if i := bytes.IndexByte(raw, 0); i >= 0 {
		return 1 + bytes.Count(raw[:i], []byte("\n")), true
	}
	if utf8.Valid(raw) {
		return 0, false
	}
	line := 1
	for len(raw) > 0 {
		r, n := utf8.DecodeRune(raw)
		if r == utf8.RuneError && n == 1 {
			break
		}
		if r == '\n' {
			line++
		}
		raw = raw[n:]
	}
	return line, true
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+)(?:, column \d+)?: )?`)

// syntax returns an error of the YAML library with the line number first, 1 if the library does not give it.
func syntax(err error, raw []byte) error {
	text, line := err.Error(), 1
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		text = text[len(m[0]):]
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
	}
	// For a tab, the library gives the line before or after it.
	for i, l := range strings.Split(string(raw), "\n") {
		if indent := l[:len(l)-len(strings.TrimLeft(l, " \t"))]; strings.Contains(indent, "\t") &&
			strings.TrimSpace(l) != "" && i+1 >= line-1 && i+1 <= line+1 {
			return fmt.Errorf("%d: a tab begins this line; YAML is indented with spaces", i+1)
		}
	}
	return fmt.Errorf("%d: this is not YAML: %s", line, strings.ReplaceAll(text, "\n", "; "))
}
