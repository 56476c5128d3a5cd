package repotest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestEveryPageIsListed checks that every page of docs/ is in its table of contents, and every decision record in
// theirs.
func TestEveryPageIsListed(t *testing.T) {
	for _, dir := range []string{"docs", "docs/adr"} {
		index := read(t, filepath.Join(dir, "README.md"))
		for _, p := range tracked(t, dir+"/*.md") {
			name := filepath.Base(p)
			if filepath.Dir(p) == dir && name != "README.md" && !strings.Contains(index, "("+name+")") {
				t.Errorf("%s is not in %s/README.md", p, dir)
			}
		}
	}
}

var (
	quoted = regexp.MustCompile("`([^`]+)`")
	gap    = regexp.MustCompile(`…|\d+`) // the variable parts of a message
	blanks = regexp.MustCompile(`\s+`)
)

// TestQuotedMessagesExist checks that a program prints each message that the tables of docs/ with a first column
// "message" quote.
func TestQuotedMessagesExist(t *testing.T) {
	var all strings.Builder
	for _, p := range tracked(t, "*.go", "install.sh") {
		if !forTests(filepath.Dir(p), p) {
			all.WriteString(read(t, p))
		}
	}
	source, found := blanks.ReplaceAllString(all.String(), " "), 0
	for _, p := range tracked(t, "docs/*.md") {
		inTable := false
		for l := range strings.Lines(read(t, p)) {
			cells := strings.Split(l, "|")
			if len(cells) < 3 {
				inTable = false
				continue
			}
			inTable = inTable || strings.TrimSpace(cells[1]) == "message"
			for _, m := range quoted.FindAllStringSubmatch(cells[1], -1) {
				for _, part := range gap.Split(m[1], -1) {
					part = strings.Trim(part, " :,")
					if !inTable || part == "" {
						continue
					}
					if found++; !strings.Contains(source, part) {
						t.Errorf("%s quotes %q, and no program prints it: correct the page", p, m[1])
					}
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d messages were found: do the tables still have a column \"message\"?", found)
	}
}

var inTree = regexp.MustCompile("`((?:agent|cmd|datastore|e2e|examples|internal|manifests|scripts|server)/[a-zA-Z0-9_./-]+)`")

// The pages for those who change the code name files and folders that exist. A name of Go after a folder
// (`server/tunnel.Dialer`) is not looked up.
func TestPathsInPagesExist(t *testing.T) {
	found := 0
	for _, p := range tracked(t, "CONTRIBUTING.md", "docs/architecture.md", "docs/adr/*.md") {
		for _, m := range inTree.FindAllStringSubmatch(read(t, p), -1) {
			path := regexp.MustCompile(`\.[A-Z]\w*$`).ReplaceAllString(m[1], "")
			found++
			if _, err := os.Stat(filepath.Join(root, path)); err != nil {
				t.Errorf("%s names `%s`, which does not exist", p, m[1])
			}
		}
	}
	if found < 40 {
		t.Errorf("only %d paths were found", found)
	}
}
