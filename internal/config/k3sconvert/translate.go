package k3sconvert

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/config/k3s"
)

// Target is the program whose settings file is written.
type Target struct {
	// Settings are those that the program has.
	Settings []config.Setting
	// Read returns the mistakes in the values of a text of settings, Validate those and all that keeps a start from
	// using them.
	Read, Validate func(text string) error
}

// line is one setting of the file.
type line struct {
	from     string // the key of k3s
	key      string // the setting, empty if it is left out
	values   []string
	list     bool
	plain    bool // the value is a switch or a number
	secret   bool
	comments []string
}

// Translate returns a settings file with the settings of in that target has. A comment has the reason for each line
// that is changed or left out. What remains passes target.Validate, except for what must be added, which comments name.
func Translate(in Input, target Target) string {
	t := translation{in: in, target: target}
	for _, e := range in.entries {
		t.lines = append(t.lines, t.line(e))
	}
	t.habits()
	for i := range t.lines {
		t.readable(&t.lines[i])
	}
	t.usable()
	return t.render(true)
}

type translation struct {
	in      Input
	target  Target
	lines   []line
	missing []string // mistakes that no line causes
}

// setting returns the setting of a key.
func (t *translation) setting(key string) (config.Setting, bool) {
	for _, s := range t.target.Settings {
		if s.Key == key {
			return s, true
		}
	}
	return config.Setting{}, false
}

// line translates one key.
func (t *translation) line(e entry) line {
	l := line{from: e.key, values: e.values}
	leave := func(reason string) line {
		l.comments = []string{"left out: " + reason}
		return l
	}
	i := slices.IndexFunc(k3s.Keys(false).Keys, func(k config.ForeignKey) bool {
		return k.Key == e.key || k.Short == e.key && e.key != ""
	})
	if i < 0 {
		return leave("neither k3s nor umiak has this setting")
	}
	k := k3s.Keys(false).Keys[i]
	l.from, l.secret = k.Key, k.Secret
	to := k.Key
	if k.Effect == config.OtherKey {
		to = k.To
	}
	s, ok := t.setting(to)
	l.secret = l.secret || s.Secret
	switch {
	case k.Key == "data-dir":
		return leave("it holds k3s' cluster; umiak keeps its own in /var/lib/umiak")
	case len(e.values) == 0:
		return leave("it has no value")
	case k.Effect == config.NoEffect:
		return leave(k.Reason)
	case k.Effect == config.Refused:
		return leave(k.Reason)
	case !ok && k.Servers && t.in.Node:
		return leave("it is a setting of servers")
	case !ok:
		return leave("umiak does not have this setting yet")
	case k.Invert && on(e.values):
		return leave("umiak does this unless " + to + " is set")
	case k.Invert:
		l.values = []string{"true"}
	case k.Value != "" && !on(e.values):
		return leave("it is off")
	case k.Value != "":
		l.values = []string{k.Value}
	}
	if !s.List {
		l.values = l.values[len(l.values)-1:]
	}
	l.key, l.list, l.plain = to, s.List, s.Type == "true or false" || s.Type == "number" || s.Type == "port"
	if to != k.Key {
		l.comments = append(l.comments, fmt.Sprintf("%s of k3s", k.Key))
	}
	if to == "disable" {
		l.disable()
	}
	return l
}

// disable gives a component umiak's name.
func (l *line) disable() {
	var out []string
	for _, name := range strings.Split(strings.Join(l.values, ","), ",") {
		if name = strings.TrimSpace(name); name == "coredns" {
			name = "dns"
			l.comments = append(l.comments, "coredns of k3s is dns")
		}
		out = append(out, name)
	}
	l.values = out
}

// on reports whether a switch is on.
func on(values []string) bool {
	b, err := strconv.ParseBool(values[len(values)-1])
	return err != nil && slices.Contains([]string{"yes", "on", "y"}, strings.ToLower(values[len(values)-1])) || b
}

// habits adds settings for what k3s does without one.
func (t *translation) habits() {
	add := func(key, value, comment string) {
		if _, ok := t.setting(key); ok && !slices.ContainsFunc(t.lines, func(l line) bool { return l.key == key }) {
			t.lines = append(t.lines, line{from: key, key: key, values: []string{value}, comments: []string{comment},
				plain: value == "true"})
		}
	}
	if registries := k3s.Etc + "/registries.yaml"; Exists(registries) {
		add("private-registry", registries, "k3s reads it without a setting")
	}
	if !t.in.Node {
		add("write-kubeconfig", k3s.Etc+"/k3s.yaml", "k3s writes it there without a setting")
	}
	if (t.in.has("etcd-s3-bucket") || t.in.has("etcd-s3-config-secret")) && !t.in.has("etcd-s3") {
		add("snapshot-s3-disable", "true", "k3s uses the bucket only with etcd-s3: true")
	}
}

// readable leaves out the values of a line that cannot be read.
func (t *translation) readable(l *line) {
	if l.key == "" || t.target.Read(l.text()) == nil {
		return
	}
	if !l.list || len(l.values) < 2 {
		l.leave(t.target.Read(l.text()))
		return
	}
	var kept []string
	for _, v := range l.values {
		one := line{key: l.key, values: []string{v}}
		if err := t.target.Read(one.text()); err != nil {
			l.comments = append(l.comments, fmt.Sprintf("left out: %s: %s", l.shown([]string{v}), reason(l.key, err)))
			continue
		}
		kept = append(kept, v)
	}
	if l.values = kept; len(kept) == 0 {
		l.key = ""
	}
}

// leave makes the line a comment with the reason.
func (l *line) leave(err error) {
	l.comments = append(l.comments, "left out: "+reason(l.key, err))
	l.key = ""
}

// reason returns what an error states about a key, on one line and without the key.
func reason(key string, err error) string {
	text, _, _ := strings.Cut(err.Error(), "\n")
	if _, after, ok := strings.Cut(text, key+": "); ok {
		return after
	}
	return text
}

// usable leaves out lines, or values of lists, until the file can be used or no line causes a mistake that is left.
func (t *translation) usable() {
	for {
		err := t.target.Validate(t.render(false))
		if err == nil {
			return
		}
		changed := false
		for text := range strings.SplitSeq(err.Error(), "\n") {
			i := slices.IndexFunc(t.lines, func(l line) bool {
				return l.key != "" && (strings.HasPrefix(text, l.key+": ") || strings.Contains(text, ": "+l.key+": "))
			})
			if i < 0 {
				if !slices.Contains(t.missing, text) {
					t.missing = append(t.missing, text)
				}
				continue
			}
			changed = true
			t.leaveCause(&t.lines[i], errors.New(text))
			break // the others may follow from it
		}
		if !changed {
			return
		}
		t.missing = nil
	}
}

// leaveCause leaves out the value of a list without which the mistake is gone, or else the line.
func (t *translation) leaveCause(l *line, mistake error) {
	all := l.values
	for i, v := range all {
		if !l.list || len(all) < 2 {
			break
		}
		l.values = slices.Delete(slices.Clone(all), i, i+1)
		if err := t.target.Validate(t.render(false)); err == nil || !strings.Contains(err.Error(), mistake.Error()) {
			l.comments = append(l.comments,
				fmt.Sprintf("left out: %s: %s", l.shown([]string{v}), reason(l.key, mistake)))
			return
		}
	}
	l.values = all
	l.leave(mistake)
}

// shown returns values for a comment; a secret is left out.
func (l line) shown(values []string) string {
	if l.secret {
		return "(secret)"
	}
	return strings.Join(strings.Fields(strings.Join(values, ", ")), " ")
}

// text returns the line as YAML.
func (l line) text() string {
	var value any = l.values
	if len(l.values) == 1 {
		value = l.values[0]
	}
	if l.plain && len(l.values) == 1 {
		return l.key + ": " + l.values[0] + "\n"
	}
	raw, err := yaml.Marshal(map[string]any{l.key: value})
	if err != nil {
		return "# " + l.key + ": " + err.Error() + "\n" // a map of texts always encodes
	}
	return string(raw)
}

// render returns the file, with or without its comments.
func (t *translation) render(comments bool) string {
	var b strings.Builder
	if comments {
		fmt.Fprintf(&b, "# Settings for umiak, translated by `umiak config from-k3s` from: %s\n",
			strings.Join(t.in.Files, ", "))
		if slices.ContainsFunc(t.lines, func(l line) bool { return l.key != "" && l.secret }) {
			b.WriteString("# This file holds secrets: chmod 600.\n")
		}
		for _, text := range t.missing {
			fmt.Fprintf(&b, "# To be mended: %s\n", text)
		}
	}
	for _, l := range t.lines {
		for i, text := range l.comments {
			switch {
			case !comments:
			case l.key == "" && i == len(l.comments)-1:
				fmt.Fprintf(&b, "# %s: %s # %s\n", l.from, l.shown(l.values), text)
			default:
				fmt.Fprintf(&b, "# %s\n", text)
			}
		}
		if l.key != "" {
			b.WriteString(l.text())
		}
	}
	return b.String()
}
