package main

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/config/k3s"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/server"
)

var update = flag.Bool("update", false, "write docs/settings.md and docs/metrics.md; the tests fail all the same")

const root = "../.."

// TestReferenceOfSettings keeps docs/settings.md true: `go test ./cmd/umiak -run Reference -update` writes it.
func TestReferenceOfSettings(t *testing.T) { reference(t, "settings.md", settingsPage()) }

// TestReferenceOfMetrics keeps docs/metrics.md true.
func TestReferenceOfMetrics(t *testing.T) { reference(t, "metrics.md", metricsPage(t)) }

// TestReferenceOfK3s keeps the tables of docs/from-k3s.md true. What is above them is written by hand.
func TestReferenceOfK3s(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(root, "docs", "from-k3s.md"))
	if err != nil {
		t.Fatal(err)
	}
	const mark = "Do not edit. -->\n"
	prose, _, ok := strings.Cut(string(raw), mark)
	if !ok {
		t.Fatalf("docs/from-k3s.md has no line that ends in %q", mark)
	}
	reference(t, "from-k3s.md", prose+mark+k3sTables())
}

// k3sTables returns the tables of k3s' settings, variables, paths, names and commands.
func k3sTables() string {
	ours := map[string]bool{}
	for _, s := range config.Describe(&server.Config{}, &agent.Config{}, &logging.Config{}) {
		ours[s.Key] = true
	}
	table := k3s.Keys(false)
	var keys, variables []string
	slices.SortFunc(table.Keys, func(a, b config.ForeignKey) int { return strings.Compare(a.Key, b.Key) })
	for _, k := range table.Keys {
		var what string
		switch to := k.To; {
		case k.Effect == config.NoEffect:
			what = "no effect: " + k.Reason
		case k.Effect == config.Refused:
			what = "refused: " + k.Reason
		case k.Effect == config.SameKey && ours[k.Key]:
			what = "the same"
		case k.Effect == config.OtherKey && ours[to] && k.Invert:
			what = "the opposite of `" + to + "`"
		case k.Effect == config.OtherKey && ours[to] && k.Value != "":
			what = "`" + to + ": " + k.Value + "`"
		case k.Effect == config.OtherKey && ours[to]:
			what = "`" + to + "`"
		default:
			what = "refused: umiak does not have this setting yet"
		}
		name := "`" + k.Key + "`"
		if k.Short != "" {
			name += ", `-" + k.Short + "`"
		}
		keys = append(keys, fmt.Sprintf("| %s | %s |\n", name, cell(what)))
		for _, v := range k.Env {
			variables = append(variables, fmt.Sprintf("| `%s` | `%s` |\n", v, k.Key))
		}
		for _, v := range k.PartEnv {
			variables = append(variables, fmt.Sprintf("| `%s` | `%s`, where nothing else sets it |\n", v, k.Key))
		}
	}
	variables = append(variables, fmt.Sprintf("| `%s` | the settings file, as `--config` |\n", table.FileEnv))
	slices.Sort(variables)
	var b strings.Builder
	b.WriteString("\n## Settings\n\nIn files, as flags, and as variables `UMIAK_KEY`.\n\n| k3s | Umiak |\n|---|---|\n" +
		strings.Join(keys, "") + "\n## Variables\n\n| k3s | sets |\n|---|---|\n" + strings.Join(variables, ""))
	for _, p := range []struct {
		title string
		list  []k3s.Place
	}{{"Paths", k3s.Paths()}, {"Labels and kinds", k3s.Names()}, {"Commands", k3s.Commands()}} {
		fmt.Fprintf(&b, "\n## %s\n\n| k3s | Umiak |\n|---|---|\n", p.title)
		for _, row := range p.list {
			fmt.Fprintf(&b, "| %s | %s |\n", cell(row.K3s), cell(row.Umiak))
		}
	}
	return b.String()
}

func reference(t *testing.T, name, want string) {
	t.Helper()
	path := filepath.Join(root, "docs", name)
	got, err := os.ReadFile(path)
	if err == nil && string(got) == want {
		return
	}
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Errorf("docs/%s is not what the program has: run `go test ./cmd/umiak -run Reference -update`, and commit it",
		name)
}

// defaultIn finds a default that the help states, as "(default: the host name)".
var defaultIn = regexp.MustCompile(` \(default: (.*)\)`)

// settingsPage returns the table of all settings by topic.
func settingsPage() string {
	of := map[string][]string{}
	var all []config.Setting
	for _, p := range []struct {
		name string
		dst  []any
	}{
		{"server", []any{&server.Config{}, &logging.Config{}}},
		{"agent", []any{&agent.Config{}, &logging.Config{}}},
	} {
		for _, s := range config.Describe(p.dst...) {
			if of[s.Key] == nil {
				all = append(all, s)
			}
			of[s.Key] = append(of[s.Key], p.name)
		}
	}
	// A server that runs a node has the settings of both.
	onServer := map[string]bool{}
	for _, s := range config.Describe(&server.Config{}, &logging.Config{}) {
		onServer[s.Key] = true
	}
	var topics []string
	rows := map[string][]string{}
	for _, s := range all {
		if !slices.Contains(topics, s.Topic) {
			topics = append(topics, s.Topic)
		}
		help, def := s.Help, s.Default
		if m := defaultIn.FindStringSubmatch(help); m != nil {
			help = strings.Replace(help, m[0], "", 1)
			if def == "" {
				def = m[1]
			}
		} else if def != "" {
			def = "`" + def + "`"
		} else if s.Type == "true or false" {
			def = "`false`"
		}
		kind := s.Type
		if s.List {
			kind = "list of " + map[string]string{"text": "texts", "address": "addresses",
				"address range": "address ranges", "addresses": "addresses or ranges", "name or address": "names or addresses",
				"address or interface": "addresses or interfaces"}[s.Type]
		}
		if s.Secret {
			kind += ", secret"
		}
		where := "server, agent"
		if onServer[s.Key] && len(of[s.Key]) == 1 {
			where = "server"
		}
		rows[s.Topic] = append(rows[s.Topic], fmt.Sprintf("| `%s` | %s | %s | %s | %s | `%s` |\n",
			s.Key, kind, cell(def), where, cell(help), s.Env))
	}
	var b strings.Builder
	b.WriteString("# Settings\n\n<!-- Generated by `go test ./cmd/umiak -run Reference -update` from the programs. Do not edit. -->\n\n" +
		"All settings of `umiak server` and of `umiak-agent`. A key is also a flag (`--node-name`) and has the environment variable in the last\n" +
		"column. A server that runs a node, which it does unless `disable-agent` is set, has the settings of an agent too.\n" +
		"How they are read and merged: [configuration](configuration.md).\n")
	for _, topic := range topics {
		fmt.Fprintf(&b, "\n## %s\n\n| key | type | default | of | what it does | variable |\n|---|---|---|---|---|---|\n%s", topic, strings.Join(rows[topic], ""))
	}
	return b.String()
}

// cell returns a text as a cell of a table.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// metricsPage returns the table of Umiak's own metrics, which it finds in the sources.
func metricsPage(t *testing.T) string {
	t.Helper()
	type metric struct{ name, kind, help, where string }
	var all []metric
	for _, f := range sources(t) {
		if !slices.ContainsFunc(f.Imports, func(i *ast.ImportSpec) bool {
			return i.Path.Value == `"github.com/prometheus/client_golang/prometheus"`
		}) {
			continue
		}
		where := "node"
		if strings.HasPrefix(f.path, "datastore/") || strings.HasPrefix(f.path, "server/") {
			where = "server"
		}
		seen := map[string]bool{}
		ast.Inspect(f.File, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr: // gauge("umiak_x", "Help.", …)
				if id, ok := n.Fun.(*ast.Ident); ok && len(n.Args) > 1 && strings.HasPrefix(text(n.Args[0]), "umiak_") {
					seen[text(n.Args[0])] = true
					all = append(all, metric{text(n.Args[0]), id.Name, text(n.Args[1]), where})
				}
			case *ast.CompositeLit: // prometheus.GaugeOpts{Name: "umiak_x", Help: "Help."}
				sel, ok := n.Type.(*ast.SelectorExpr)
				if !ok || !strings.HasSuffix(sel.Sel.Name, "Opts") {
					return true
				}
				m := metric{kind: strings.ToLower(strings.TrimSuffix(sel.Sel.Name, "Opts")), where: where}
				for _, e := range n.Elts {
					if kv, ok := e.(*ast.KeyValueExpr); ok {
						switch fmt.Sprint(kv.Key) {
						case "Name":
							m.name = text(kv.Value)
						case "Help":
							m.help = text(kv.Value)
						}
					}
				}
				if m.name != "" {
					seen[m.name] = true
					all = append(all, m)
				}
			case *ast.BasicLit:
				if name := text(n); strings.HasPrefix(name, "umiak_") && !seen[name] {
					t.Errorf("%s: %s looks like a metric that metricsPage cannot read", f.path, name)
				}
			}
			return true
		})
	}
	if len(all) < 10 {
		t.Errorf("only %d metrics found", len(all))
	}
	slices.SortFunc(all, func(a, b metric) int { return strings.Compare(a.name, b.name) })
	var b strings.Builder
	b.WriteString("# Metrics\n\n<!-- Generated by `go test ./cmd/umiak -run Reference -update` from the sources. Do not edit. -->\n\n" +
		"Umiak's own metrics, beside those of the Kubernetes components, in the same text format. Nothing more has to be scraped:\n\n" +
		"* server: `umiak kubectl get --raw /metrics`, the API server's. A server that runs a node serves those of its node there too.\n" +
		"* node: `umiak kubectl get --raw /api/v1/nodes/NODE/proxy/metrics`, the kubelet's.\n\n" +
		"| metric | type | what it measures | served by |\n|---|---|---|---|\n")
	for _, m := range all {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.name, m.kind, cell(m.help), m.where)
	}
	return b.String()
}

// text returns the value of a string literal, empty for any other expression.
func text(e ast.Expr) string {
	if l, ok := e.(*ast.BasicLit); ok && l.Kind == token.STRING {
		s, _ := strconv.Unquote(l.Value)
		return s
	}
	return ""
}

// source is a file of the programs with its path below the repository.
type source struct {
	*ast.File
	path string
}

// sources returns the files that the programs are made of, without tests.
func sources(t *testing.T) (out []source) {
	t.Helper()
	for _, dir := range []string{"agent", "cmd", "datastore", "internal", "server"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, path)
			out = append(out, source{f, filepath.ToSlash(rel)})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestEverySettingIsRead fails for a field of a Config that nothing but its validation reads.
func TestEverySettingIsRead(t *testing.T) {
	const module = "github.com/umiak-io/umiak/"
	read := map[string]map[string]bool{} // by folder of the package, names that are selected
	for _, f := range sources(t) {
		names := map[string]bool{}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv != nil &&
				(strings.HasPrefix(fn.Name.Name, "Validate") || strings.HasPrefix(fn.Name.Name, "check")) {
				continue
			}
			ast.Inspect(d, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					names[s.Sel.Name] = true
				}
				return true
			})
		}
		packages := []string{module + filepath.ToSlash(filepath.Dir(f.path))}
		for _, i := range f.Imports {
			packages = append(packages, strings.Trim(i.Path.Value, `"`))
		}
		for _, p := range packages {
			if read[p] == nil {
				read[p] = map[string]bool{}
			}
			for n := range names {
				read[p][n] = true
			}
		}
	}
	unread := map[string]string{} // by key; a key of two structs has to be read in one of them
	var walk func(typ reflect.Type)
	walk = func(typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			key, tagged := f.Tag.Lookup("key")
			switch {
			case !tagged && f.IsExported() && f.Type.Kind() == reflect.Struct:
				walk(f.Type)
			case !tagged:
			case read[typ.PkgPath()][f.Name]:
				unread[key] = ""
			default:
				if _, known := unread[key]; !known {
					unread[key] = typ.String() + "." + f.Name
				}
			}
		}
	}
	for _, c := range []any{server.Config{}, agent.Config{}, logging.Config{}} {
		walk(reflect.TypeOf(c))
	}
	for key, field := range unread {
		if field != "" {
			t.Errorf("nothing reads %s, the setting %s", field, key)
		}
	}
}

// TestEverySettingIsInADocument fails for a setting that no page of docs/ that a person wrote mentions.
func TestEverySettingIsInADocument(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatal(err, pages)
	}
	var all bytes.Buffer
	for _, p := range pages {
		if base := filepath.Base(p); base == "settings.md" || base == "from-k3s.md" {
			continue
		}
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	for _, s := range config.Describe(&server.Config{}, &agent.Config{}, &logging.Config{}) {
		if !regexp.MustCompile(`(^|[^a-z0-9-]|--)` + s.Key + `([^a-z0-9-]|$)`).Match(all.Bytes()) {
			t.Errorf("no page of docs/ mentions the setting %s", s.Key)
		}
	}
}
