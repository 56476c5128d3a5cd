package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Foreign describes the settings of another program, by whose names users may set those of this one. Passed to Flags,
// Load and LoadInstalled among the settings structs, it adds its names to all sources.
type Foreign struct {
	// Program is the name of the other program, for messages.
	Program string
	// NodeOnly reports that this program cannot be a server: keys of servers have no effect on it.
	NodeOnly bool
	// FileEnv is the variable that names the settings file.
	FileEnv string
	// EnvPrefix begins the names of the other program's variables.
	EnvPrefix string
	// Keys are the settings, each once.
	Keys []ForeignKey
}

// Effect is what a foreign key does.
type Effect int

// The effects.
const (
	SameKey  Effect = iota // there is a setting of the same name; without one, the key is refused
	OtherKey               // the setting has another name
	NoEffect               // the key is accepted and does nothing
	Refused                // the key is a mistake, unless it is a switch that is off
)

// Form is what a foreign key takes, which the command line must know.
type Form int

// The forms.
const (
	Text Form = iota
	Switch
)

// ForeignKey is one setting of another program.
type ForeignKey struct {
	Key string
	// Short is the letter of a short flag, empty for none.
	Short string
	// Env lists variables besides UMIAK_KEY.
	Env []string
	// PartEnv lists variables that the part with the setting reads itself where the setting is not set.
	PartEnv []string
	Form    Form
	// Secret reports that the value is a secret, for a key that sets no setting.
	Secret bool
	// Servers reports that only servers have the setting.
	Servers bool
	Effect  Effect
	// To is the name of the setting, for OtherKey.
	To string
	// Value is the text that an OtherKey with the form Switch sets where it is on; empty passes the switch itself on.
	Value string
	// Invert makes an OtherKey with the form Switch turn the setting off where it is on, and on where it is off.
	Invert bool
	// Enables lists settings that the other program uses only where this switch of the form OtherKey is on. Where one is
	// set by the other program's name and nothing sets the switch, the switch is off.
	Enables []string
	// Reason states why a key has no effect or is refused, and what to set instead. For a SameKey or OtherKey that is
	// refused because the setting does not exist, it adds to the message.
	Reason string
}

// Long returns the table without short flags, for commands that have flags of these letters.
func (t Foreign) Long() Foreign {
	t.Keys = slices.Clone(t.Keys)
	for i := range t.Keys {
		t.Keys[i].Short = ""
	}
	return t
}

// target is the key of the setting that a key sets, empty for one that sets none.
func (k ForeignKey) target() string {
	switch k.Effect {
	case SameKey:
		return k.Key
	case OtherKey:
		return k.To
	}
	return ""
}

// entry is what a key stands for: a setting, a foreign key, or both.
type entry struct {
	field   *field      // nil for a key that sets nothing
	foreign *ForeignKey // nil for a setting's name
}

// isSwitch reports whether the key takes true or false.
func (e entry) isSwitch() bool {
	if e.foreign != nil && (e.field == nil || e.foreign.Value != "") {
		return e.foreign.Form == Switch
	}
	return e.field.isBool()
}

// isList reports whether the key takes several values.
func (e entry) isList() bool {
	return e.field == nil && !e.isSwitch() || e.field != nil && e.field.isList()
}

// verbatim reports whether commas in the values belong to a component.
func (e entry) verbatim() bool {
	if e.field != nil {
		return e.field.verbatim()
	}
	return isArgs(e.foreign.Key)
}

// other reports whether the foreign key's name is not the setting's.
func (e entry) other() bool { return e.field == nil || e.field.key != e.foreign.Key }

// environment lists the variables of the entry.
func (e entry) environment() []string {
	switch {
	case e.foreign == nil:
		return []string{envOf(e.field.key)}
	case e.other():
		return append([]string{envOf(e.foreign.Key)}, e.foreign.Env...)
	}
	return e.foreign.Env
}

// flags lists the flags of the entry.
func (e entry) flags() (out []string) {
	if e.foreign == nil {
		return []string{e.field.key}
	}
	if e.other() {
		out = append(out, e.foreign.Key)
	}
	if e.foreign.Short != "" {
		out = append(out, e.foreign.Short)
	}
	return out
}

// entryOf returns what a foreign key stands for among the settings.
func (s *schema) entryOf(k *ForeignKey) entry {
	return entry{field: s.byKey[k.target()], foreign: k}
}

// values returns the values that the entry gives its setting; none with a reason if the key has no effect, none without
// a reason for a switch that is off.
func (s *schema) values(e entry, given []string) (values []string, reason string, err error) {
	k := e.foreign
	if k == nil {
		return given, "", nil
	}
	if e.field == nil && s.nodeOnly && k.Servers {
		return nil, "it is a setting of servers", nil
	}
	if e.isSwitch() && (k.Effect == Refused || k.Value != "" || k.Invert || e.field == nil) {
		on, err := truth(last(given))
		switch {
		case err != nil:
			return nil, "", err
		case k.Invert && e.field != nil:
			return []string{strconv.FormatBool(!on)}, "", nil
		case !on && k.Effect != NoEffect:
			return nil, "", nil
		case k.Value != "" && e.field != nil:
			return []string{k.Value}, "", nil
		}
	}
	switch {
	case k.Effect == Refused:
		return nil, "", errors.New(k.Reason)
	case k.Effect == NoEffect:
		return nil, k.Reason, nil
	case e.field == nil:
		text := "umiak does not have this setting yet"
		if k.Reason != "" {
			text += "; " + k.Reason
		}
		return nil, "", errors.New(text)
	}
	return given, "", nil
}

// last returns the value that counts where a setting takes one.
func last(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}

// addForeign adds the names of a table.
func (s *schema) addForeign(t Foreign) {
	s.programs = append(s.programs, t)
	s.nodeOnly = s.nodeOnly || t.NodeOnly
	for i := range t.Keys {
		k := &t.Keys[i]
		s.foreign = append(s.foreign, k)
	}
}

// lookup returns what a key stands for. The error names the nearest key.
func (s *schema) lookup(key string) (entry, error) {
	if f, ok := s.byKey[key]; ok {
		return entry{field: f}, nil
	}
	var known []string
	for _, f := range s.fields {
		known = append(known, f.key)
	}
	for _, k := range s.foreign {
		if k.Key == key || k.Short == key && key != "" {
			return s.entryOf(k), nil
		}
		known = append(known, k.Key)
	}
	if best := Nearest(key, known); best != "" {
		return entry{}, fmt.Errorf("no such setting; did you mean %s?", best)
	}
	return entry{}, errors.New("no such setting; `--help` lists them")
}

// isArgs reports whether the values of a key are passed on to a component.
func isArgs(key string) bool { return strings.HasSuffix(key, "-arg") }
