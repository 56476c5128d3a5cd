package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// schema is all settings of a program: the table in which every source looks up a key.
type schema struct {
	fields   []*field // in the order of the structs
	byKey    map[string]*field
	programs []Foreign
	foreign  []*ForeignKey // of all programs
	nodeOnly bool          // keys of servers have no effect
	findings findings
}

// findings is what reading the settings files has found besides values and mistakes.
type findings struct {
	files       []string // that were read
	empty       []string // files without a setting
	secretFiles []string // files that hold a secret
	unused      []string // a sentence for each key without effect
	foreign     bool     // a file uses a name that only another program has
}

// field is one setting: what its tags state, and the struct fields that get its value.
type field struct {
	key, def, usage string
	topic           string   // the heading of the struct under which it stands
	values          []string // the only values that a string may have, empty for any
	secret          bool     // the value is a secret
	secretFile      bool     // the value names a file that holds a secret
	dst             []reflect.Value
	texts           []string // what the value was parsed from
	at              string   // the place in the file that set it, empty if none did
	foreign         bool     // at has another program's name of the setting
}

func (f *field) isBool() bool { return f.dst[0].Kind() == reflect.Bool }
func (f *field) isList() bool { return f.dst[0].Kind() == reflect.Slice }

// verbatim reports whether values are passed on to a component: commas in them belong to the component and separate
// nothing.
func (f *field) verbatim() bool { return isArgs(f.key) }

// help returns the usage followed by the values that the setting may have.
func (f *field) help() string {
	if len(f.values) == 0 {
		return f.usage
	}
	return f.usage + ": " + oneOf(f.values)
}

// oneOf joins values as "a, b or c".
func oneOf(values []string) string {
	last := len(values) - 1
	if last == 0 {
		return values[0]
	}
	return strings.Join(values[:last], ", ") + " or " + values[last]
}

// collect reads the tags of the structs that dst points to, and the tables of foreign keys in it. It panics where two
// definitions of a key differ.
func collect(dst []any) *schema {
	out := &schema{byKey: map[string]*field{}}
	for _, d := range dst {
		if t, ok := d.(Foreign); ok {
			out.addForeign(t)
			continue
		}
		topic := ""
		out.walk(reflect.ValueOf(d).Elem(), &topic)
	}
	return out
}

// walk adds the settings of a struct and of the untagged structs in it. topic is the heading that was read last.
func (s *schema) walk(v reflect.Value, topic *string) {
	for i := range v.NumField() {
		sf, fv := v.Type().Field(i), v.Field(i)
		if heading, ok := sf.Tag.Lookup("topic"); ok {
			*topic = heading
		}
		key, tagged := sf.Tag.Lookup("key")
		if !tagged {
			if fv.Kind() == reflect.Struct && sf.IsExported() {
				s.walk(fv, topic)
			}
			continue
		}
		def := sf.Tag.Get("default")
		f := s.byKey[key]
		if f == nil {
			f = &field{key: key, def: def, usage: sf.Tag.Get("usage"), topic: *topic,
				secret: sf.Tag.Get("secret") == "true", secretFile: sf.Tag.Get("secret") == "file"}
			if values := sf.Tag.Get("values"); values != "" {
				f.values = strings.Split(values, ",")
			}
			s.byKey[key] = f
			s.fields = append(s.fields, f)
		} else if f.dst[0].Type() != fv.Type() || f.def != def {
			panic(fmt.Sprintf("the two definitions of key %q differ", key))
		}
		f.dst = append(f.dst, fv)
	}
}

// setDefaults gives every setting that has a default its value.
func (s *schema) setDefaults() {
	for _, f := range s.fields {
		if f.def == "" {
			continue
		}
		if errs := f.set([]string{f.def}); errs != nil {
			panic(fmt.Sprintf("default of %s: %v", f.key, errors.Join(errs...)))
		}
	}
}
