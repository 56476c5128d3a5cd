package config

import (
	"errors"
	"fmt"
	"slices"
)

// Mistake is an error in the value of a setting.
type Mistake struct {
	Key string
	// Also are other keys that take part: where the value of one of them cannot be read, the mistake follows from that.
	Also []string
	// At is where the value that cannot be read stands, as "config.yaml:3: KEY" or "--KEY"; empty for a value that was
	// read and cannot be used.
	At  string
	Err error
}

// Error returns the place or the key, and what is wrong.
func (m *Mistake) Error() string {
	if m.At != "" {
		return m.At + ": " + m.Err.Error()
	}
	return m.Key + ": " + m.Err.Error()
}

// Unwrap returns what is wrong.
func (m *Mistake) Unwrap() error { return m.Err }

// Mistakes collects what is wrong with settings, in the order in which it is found. The zero Mistakes is empty.
type Mistakes struct{ errs []error }

// Add adds the mistake of a key.
func (m *Mistakes) Add(key, format string, a ...any) { m.AddWith(key, nil, format, a...) }

// AddWith adds the mistake of a key that does not fit other keys.
func (m *Mistakes) AddWith(key string, also []string, format string, a ...any) {
	m.errs = append(m.errs, &Mistake{Key: key, Also: also, Err: fmt.Errorf(format, a...)})
}

// Join adds errors that name their key; nil adds nothing.
func (m *Mistakes) Join(errs ...error) { m.errs = append(m.errs, flatten(errors.Join(errs...))...) }

// Err returns the mistakes joined, nil for none.
func (m *Mistakes) Err() error { return errors.Join(m.errs...) }

// Report joins what loading and validating settings have found, one error for each mistake: a text once, and nothing
// that follows from a value that could not be read.
func Report(errs ...error) error {
	all := flatten(errors.Join(errs...))
	unread := map[string]bool{}
	for _, err := range all {
		if m := new(Mistake); errors.As(err, &m) && m.At != "" {
			unread[m.Key] = true
		}
	}
	var out []error
	seen := map[string]bool{}
	for _, err := range all {
		if seen[err.Error()] {
			continue
		}
		seen[err.Error()] = true
		if m := new(Mistake); errors.As(err, &m) && m.At == "" {
			if slices.ContainsFunc(append([]string{m.Key}, m.Also...), func(key string) bool { return unread[key] }) {
				continue
			}
		}
		out = append(out, err)
	}
	return errors.Join(out...)
}

// Except returns the errors that loading has found without those of values of other keys than these, for a command that
// uses no others.
func Except(err error, keys ...string) error {
	return errors.Join(slices.DeleteFunc(flatten(err), func(err error) bool {
		m := new(Mistake)
		return errors.As(err, &m) && !slices.Contains(keys, m.Key)
	})...)
}

// flatten returns the errors that err joins, at any depth. An error that wraps several in a text of its own is one.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error }) // the error itself, not one that it wraps
	if !ok {
		return []error{err}
	}
	parts := joined.Unwrap()
	if errors.Join(parts...).Error() != err.Error() {
		return []error{err}
	}
	var out []error
	for _, e := range parts {
		out = append(out, flatten(e)...)
	}
	return out
}
