package config

import (
	"encoding"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// set parses values into every struct field of the setting. On errors, one for each value that cannot be used, they
// keep the value that they have.
func (f *field) set(values []string) (errs []error) {
	t := f.dst[0].Type()
	texts := f.split(values)
	elem := t
	if f.isList() {
		elem = t.Elem()
	}
	parsed := make([]reflect.Value, len(texts))
	for i, text := range texts {
		parsed[i] = reflect.New(elem).Elem()
		if err := f.parse(parsed[i], text); err != nil {
			errs = append(errs, err)
		}
	}
	if errs != nil {
		return errs
	}
	f.texts = texts
	for _, d := range f.dst {
		if !f.isList() {
			d.Set(parsed[0])
			continue
		}
		list := reflect.MakeSlice(t, 0, len(parsed))
		d.Set(reflect.Append(list, parsed...))
	}
	return nil
}

// split returns the texts of the setting's values: the items of a list, else the last value.
func (f *field) split(values []string) []string {
	if f.isList() {
		return f.items(values)
	}
	return []string{last(values)}
}

var durationType = reflect.TypeFor[time.Duration]()

// parse writes the value of a text into v.
func (f *field) parse(v reflect.Value, text string) error {
	switch dst := v.Addr().Interface().(type) {
	case *netip.Addr:
		return f.parseAddr(dst, text)
	case *netip.Prefix:
		return f.parsePrefix(dst, text)
	case encoding.TextUnmarshaler:
		err := dst.UnmarshalText([]byte(text))
		if err != nil && f.secret {
			return errors.New("the value cannot be read")
		}
		return err
	}
	switch {
	case v.Type() == durationType:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%s is not a duration such as 90s or 12h", f.show(text))
		}
		v.SetInt(int64(d))
	case v.Kind() == reflect.String:
		return f.parseString(v, text)
	case v.Kind() == reflect.Bool:
		b, err := truth(text)
		if err != nil {
			return err
		}
		v.SetBool(b)
	case v.Kind() == reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%s is not a whole number", f.show(text))
		}
		v.SetInt(int64(n))
	default:
		panic(fmt.Sprintf("key %s has type %s, which config does not know", f.key, v.Type()))
	}
	return nil
}

// truth reads a switch. It takes the words of YAML 1.1 as well, which other programs read as true and false.
func truth(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "yes", "on", "y":
		return true, nil
	case "no", "off", "n":
		return false, nil
	}
	b, err := strconv.ParseBool(text)
	if err != nil {
		return false, fmt.Errorf("%q is not true or false", text)
	}
	return b, nil
}

// parseString takes a text or, where the setting has a list of values, one of them in any case of letters.
func (f *field) parseString(v reflect.Value, text string) error {
	if len(f.values) == 0 {
		v.SetString(text)
		return nil
	}
	i := slices.IndexFunc(f.values, func(value string) bool { return strings.EqualFold(value, text) })
	if i < 0 {
		near := ""
		if n := Nearest(text, f.values); n != "" {
			near = fmt.Sprintf("; did you mean %s?", n)
		}
		return fmt.Errorf("%s is not %s%s", f.show(text), oneOf(f.values), near)
	}
	v.SetString(f.values[i])
	return nil
}

// parseAddr reads an address; an empty text is the zero Addr, for a setting that is not set.
func (f *field) parseAddr(dst *netip.Addr, text string) (err error) {
	if text == "" {
		*dst = netip.Addr{}
		return nil
	}
	if *dst, err = netip.ParseAddr(text); err != nil {
		return fmt.Errorf("%s is not an IP address", f.show(text))
	}
	return nil
}

// parsePrefix reads an address range that has no bits behind the prefix.
func (f *field) parsePrefix(dst *netip.Prefix, text string) error {
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return fmt.Errorf("%s is not an address range such as 10.42.0.0/16", f.show(text))
	}
	if p != p.Masked() {
		return fmt.Errorf("%s has bits set behind the prefix, %s is meant?", f.show(text), p.Masked())
	}
	*dst = p
	return nil
}

// items splits the values of a list at commas, whatever their source.
func (f *field) items(values []string) []string {
	if f.verbatim() {
		return slices.Clone(values)
	}
	out := []string{}
	for _, v := range values {
		for item := range strings.SplitSeq(v, ",") {
			if item = strings.TrimSpace(item); item != "" {
				out = append(out, item)
			}
		}
	}
	return out
}

// lines returns the values in an environment variable: one, or one a line for flags of components, whose values are
// verbatim and may hold commas.
func lines(v string, verbatim bool) []string {
	if !verbatim {
		return []string{v}
	}
	var out []string
	for line := range strings.Lines(v) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

// show quotes a value for an error, unless it is a secret.
func (f *field) show(v string) string {
	if f.secret {
		return "the value"
	}
	return strconv.Quote(v)
}
