package corefile

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/coredns/caddy/caddyfile"
)

// Error is an error with its place in what the user wrote.
type Error struct {
	File string // "Corefile", or the path of an imported file
	Line int
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err) }

// Unwrap returns the error without its place.
func (e *Error) Unwrap() error { return e.Err }

// Unit is a part of an imported file that can be left out alone: a server block or, where the file is imported
// inside a block, one directive. A file whose braces do not match is one unit.
type Unit struct {
	File string
	Line int // of its first word
}

// Units lists the units of all files that the text imports, in their order. It fails where Rewrite would whatever is
// left out.
func Units(text string, o Options) ([]Unit, error) {
	_, units, err := expand(text, o)
	return units, err
}

// Locate finds the directive that an error of CoreDNS is about, within a unit: by the plugin that the error names. It
// returns the unit's first line if there is none.
func Locate(u Unit, text string, err error) *Error {
	out := &Error{File: u.File, Line: u.Line, Err: err}
	m := pluginError.FindStringSubmatch(err.Error())
	if m == nil {
		return out
	}
	name := strings.TrimPrefix(m[1], "umiak_")
	for _, s := range statements(lex(u.File, text), false) {
		if s[0].Line != u.Line {
			continue
		}
		for i, t := range s {
			if t.Text == name && (i == 0 || newLine(s[i-1], t)) {
				out.Line = t.Line
				return out
			}
		}
	}
	return out
}

var (
	pluginError = regexp.MustCompile(`plugin/([a-z_]+):`)
	// parseError matches the errors of caddyfile.
	parseError = regexp.MustCompile(`^Corefile:(\d+) - (?:Error during parsing|Syntax error): (?s:(.*))$`)
)

// place is the origin of a line of the flattened text.
type place struct {
	file string
	line int
}

// places are the origins of the lines that write makes of tokens; the first line has index 0.
func places(tokens []caddyfile.Token) []place {
	var out []place
	for i, t := range tokens {
		if i == 0 || newLine(tokens[i-1], t) {
			out = append(out, place{t.File, t.Line})
		}
		for n := range strings.Count(t.Text, "\n") {
			out = append(out, place{t.File, t.Line + n + 1})
		}
	}
	return out
}

// at gives an error its place; line is one of the flattened text.
func (r *rewriter) at(line int, err error) error {
	if line < 1 || len(r.places) == 0 {
		return err
	}
	p := r.places[min(line, len(r.places))-1]
	return &Error{p.file, p.line, err}
}

// parseError words an error of the parser, whose line is one of the flattened text.
func (r *rewriter) parseError(err error) error {
	m := parseError.FindStringSubmatch(err.Error())
	if m == nil {
		return fmt.Errorf("parse Corefile: %w", err)
	}
	line, _ := strconv.Atoi(m[1])
	text := m[2]
	if strings.HasPrefix(text, "Unknown directive") {
		text += " (plugins: " + strings.Join(known, ", ") + ")"
	}
	return r.at(line, errors.New(text))
}

// firstLine is the first line of a block's directives in the flattened text; the block's keys stand on that line or
// before it.
func firstLine(b caddyfile.ServerBlock) int {
	first := 0
	for _, tokens := range b.Tokens {
		for _, t := range tokens {
			if first == 0 || t.Line < first {
				first = t.Line
			}
		}
	}
	if first > 1 {
		first-- // the line of the brace
	}
	return first
}

// expand lexes the text and puts the files in where they are imported.
func expand(text string, o Options) ([]caddyfile.Token, []Unit, error) {
	e := expansion{o: o, left: maxImports}
	out, err := e.file("Corefile", text, 0)
	return out, e.units, err
}

type expansion struct {
	o     Options
	left  int // imports
	depth int // of braces
	units []Unit
}

// file expands one file; level is how deep it is imported.
func (e *expansion) file(name, text string, level int) ([]caddyfile.Token, error) {
	if level > 10 {
		return nil, &Error{name, 1, errors.New("imports go more than 10 deep")}
	}
	in := lex(name, text)
	if level > 0 {
		in = e.choose(in)
	}
	var out []caddyfile.Token
	for i := 0; i < len(in); i++ {
		t := in[i]
		if len(out) > maxTokens {
			return nil, &Error{name, t.Line, fmt.Errorf("longer than %d words", maxTokens)}
		}
		start := i == 0 || in[i-1].Line != t.Line || in[i-1].Text == "{"
		if t.Text != "import" || !start || i+1 >= len(in) || in[i+1].Line != t.Line ||
			!strings.ContainsAny(in[i+1].Text, "/*?") {
			switch t.Text {
			case "{":
				e.depth++
			case "}":
				e.depth--
			}
			out = append(out, t)
			continue
		}
		i++
		if e.left--; e.left < 0 {
			return nil, &Error{name, t.Line, fmt.Errorf("more than %d imports", maxImports)}
		}
		names, err := match(in[i].Text, e.o.Files)
		if err != nil {
			return nil, &Error{name, t.Line, err}
		}
		for _, f := range names {
			more, err := e.file(f, e.o.Files[f], level+1)
			if err != nil {
				return nil, err
			}
			if len(out)+len(more) > maxTokens {
				return nil, &Error{name, t.Line, fmt.Errorf("longer than %d words", maxTokens)}
			}
			out = append(out, more...)
		}
	}
	return out, nil
}

// choose records an imported file's units and drops those to leave out.
func (e *expansion) choose(in []caddyfile.Token) []caddyfile.Token {
	var out []caddyfile.Token
	for _, s := range statements(in, e.depth > 0) {
		u := Unit{s[0].File, s[0].Line}
		e.units = append(e.units, u)
		if !e.o.Without[u] {
			out = append(out, s...)
		}
	}
	return out
}

// statements splits a file: inside a block into directives, each with the block behind it, otherwise into server
// blocks.
func statements(in []caddyfile.Token, inside bool) [][]caddyfile.Token {
	var out [][]caddyfile.Token
	depth, open := 0, false
	for i, t := range in {
		fresh := !open
		if depth == 0 && i > 0 && newLine(in[i-1], t) {
			// An import is a statement of its own, also between blocks.
			fresh = fresh || inside || in[i-1].Line != t.Line && len(out) > 0 && out[len(out)-1][0].Text == "import"
		}
		if fresh {
			out = append(out, nil)
			open = true
		}
		out[len(out)-1] = append(out[len(out)-1], t)
		switch t.Text {
		case "{":
			depth++
		case "}":
			if depth--; depth < 0 {
				return [][]caddyfile.Token{in}
			}
			open = depth > 0 || inside
		}
	}
	if depth != 0 {
		return [][]caddyfile.Token{in}
	}
	return out
}

func match(pattern string, files map[string]string) ([]string, error) {
	var names []string
	for _, f := range slices.Sorted(maps.Keys(files)) {
		ok, err := path.Match(pattern, f)
		if err != nil {
			return nil, fmt.Errorf("import %q: %w", pattern, err)
		}
		if ok {
			names = append(names, f)
		}
	}
	if len(names) == 0 && !strings.ContainsAny(pattern, "*?[") {
		return nil, fmt.Errorf("import %q: no such key in the ConfigMaps coredns and coredns-custom", pattern)
	}
	return names, nil
}
