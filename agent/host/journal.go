package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

// Kind is a kind of object that umiak creates on the host.
type Kind string

// Kinds of objects outside umiak's own directories.
const (
	KindCgroup    Kind = "cgroup"
	KindInterface Kind = "interface"
	KindTable     Kind = "nftables table"
	KindPath      Kind = "path"
)

// State is the content of the journal on disk.
type State struct {
	// Boot and Netns identify the boot and the network namespace for which the records are valid: sysctls and
	// interfaces of others no longer exist.
	Boot  string `json:"boot"`
	Netns string `json:"netns"`
	// Sysctls are the values before umiak changed them.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// Made lists the names of objects that did not exist before, by kind.
	Made map[Kind][]string `json:"made,omitempty"`
}

// Journal records changes to the host before they are made. It is safe for concurrent use.
type Journal struct {
	path string
	sys  string // /proc/sys

	mu    sync.Mutex
	state State
}

// OpenJournal reads the journal, which need not exist, and drops records that a reboot or another network namespace has
// invalidated. The error of a damaged file wraps ErrJournal.
func OpenJournal(path string) (*Journal, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	netns, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("read network namespace: %w", err)
	}
	return openJournal(path, "/proc/sys", strings.TrimSpace(string(boot)), netns)
}

func openJournal(path, sys, boot, netns string) (*Journal, error) {
	j := &Journal{path: path, sys: sys, state: State{Boot: boot, Netns: netns}}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the host journal: %w", err)
	}
	old, err := parseState(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	j.state.Made = old.Made
	if old.Boot != boot {
		j.drop(KindInterface, KindTable, KindCgroup)
		return j, nil
	}
	j.state.Sysctls = old.Sysctls
	if old.Netns != netns {
		for name := range j.state.Sysctls {
			if strings.HasPrefix(name, "net.") {
				delete(j.state.Sysctls, name)
			}
		}
		j.drop(KindInterface, KindTable)
	}
	return j, nil
}

func (j *Journal) drop(kinds ...Kind) {
	for _, k := range kinds {
		delete(j.state.Made, k)
	}
}

// ErrJournal means that the journal file is damaged.
var ErrJournal = errors.New("the journal of the host's state is damaged")

var (
	sysctlName  = regexp.MustCompile(`^[a-z0-9_]+(\.[A-Za-z0-9_/-]+)+$`)
	sysctlValue = regexp.MustCompile(`^[A-Za-z0-9 \t._:/-]{0,256}$`)
)

// parseState parses the journal strictly: cleanup acts on it as root.
func parseState(raw []byte) (State, error) {
	var s State
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return State{}, fmt.Errorf("%w: %w", ErrJournal, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return State{}, fmt.Errorf("%w: data after the end", ErrJournal)
	}
	for n, v := range s.Sysctls {
		if !sysctlName.MatchString(n) || strings.Contains(n, "..") || !sysctlValue.MatchString(v) {
			return State{}, fmt.Errorf("%w: %q is not a sysctl with a value", ErrJournal, n)
		}
	}
	for k, names := range s.Made {
		for _, n := range names {
			ok := false
			switch k {
			case KindCgroup:
				ok = filepath.Clean(n) == n && strings.HasPrefix(n, CgroupMount+"/")
			case KindPath:
				ok = filepath.Clean(n) == n && strings.Count(n, "/") >= 3 && n[0] == '/'
			case KindInterface, KindTable:
				ok = n != "" && len(n) < 128 && !strings.ContainsAny(n, "/\x00")
			}
			if !ok {
				return State{}, fmt.Errorf("%w: %q is not a %s", ErrJournal, n, k)
			}
		}
	}
	return s, nil
}

// State returns a copy of the records.
func (j *Journal) State() State {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.state
	s.Sysctls = map[string]string{}
	for k, v := range j.state.Sysctls {
		s.Sysctls[k] = v
	}
	s.Made = map[Kind][]string{}
	for k, v := range j.state.Made {
		s.Made[k] = slices.Clone(v)
	}
	return s
}

// Made records objects that are about to be created.
func (j *Journal) Made(k Kind, names ...string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	changed := false
	for _, name := range names {
		if slices.Contains(j.state.Made[k], name) {
			continue
		}
		if j.state.Made == nil {
			j.state.Made = map[Kind][]string{}
		}
		j.state.Made[k] = append(j.state.Made[k], name)
		changed = true
	}
	if !changed {
		return nil
	}
	return j.save()
}

// RecordSysctls records the current values of sysctls that another component, such as the kubelet, is about to change.
// Sysctls that the kernel does not have are skipped.
func (j *Journal) RecordSysctls(names ...string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	changed := false
	for _, n := range names {
		if _, recorded := j.state.Sysctls[n]; recorded {
			continue
		}
		v, err := j.read(n)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read sysctl %s: %w", n, err)
		}
		if j.state.Sysctls == nil {
			j.state.Sysctls = map[string]string{}
		}
		j.state.Sysctls[n], changed = v, true
	}
	if !changed {
		return nil
	}
	return j.save()
}

// Set records a sysctl's value and changes it. It does nothing if the sysctl has the value already.
func (j *Journal) Set(name, value string) error {
	old, err := j.read(name)
	if err != nil {
		return fmt.Errorf("read sysctl %s: %w", name, err)
	}
	if old == value {
		return nil
	}
	if err := j.RecordSysctls(name); err != nil {
		return err
	}
	if err := os.WriteFile(j.file(name), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", name, value, err)
	}
	return nil
}

// Restore restores the sysctls and removes their records; those that cannot be restored stay recorded. It calls report
// for each restored sysctl.
func (j *Journal) Restore(report func(name, value string)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var errs []error
	for _, n := range sortedKeys(j.state.Sysctls) {
		v := j.state.Sysctls[n]
		now, err := j.read(n)
		if errors.Is(err, fs.ErrNotExist) {
			delete(j.state.Sysctls, n)
			continue
		}
		if err == nil && now != v {
			if err = os.WriteFile(j.file(n), []byte(v), 0o644); err == nil {
				report(n, v)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("restore sysctl %s to %q: %w", n, v, err))
			continue
		}
		delete(j.state.Sysctls, n)
	}
	return errors.Join(append(errs, j.save())...)
}

// Gone removes the record of an object.
func (j *Journal) Gone(k Kind, name string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := slices.Index(j.state.Made[k], name)
	if i < 0 {
		return nil
	}
	j.state.Made[k] = slices.Delete(j.state.Made[k], i, i+1)
	if len(j.state.Made[k]) == 0 {
		delete(j.state.Made, k)
	}
	return j.save()
}

// Sysctl returns the current value of a sysctl.
func (j *Journal) Sysctl(name string) (string, error) { return j.read(name) }

func (j *Journal) read(name string) (string, error) {
	raw, err := os.ReadFile(j.file(name))
	return strings.TrimSpace(string(raw)), err
}

// file is the path of a sysctl: dots separate its parts, and a slash stands for a dot within a part, see sysctl(8).
func (j *Journal) file(name string) string {
	parts := strings.Split(name, ".")
	for i, p := range parts {
		parts[i] = strings.ReplaceAll(p, "/", ".")
	}
	return filepath.Join(append([]string{j.sys}, parts...)...)
}

// save writes the records, or removes the file if there are none.
func (j *Journal) save() error {
	if len(j.state.Sysctls) == 0 && len(j.state.Made) == 0 {
		if err := os.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the host journal: %w", err)
		}
		return nil
	}
	raw, err := json.MarshalIndent(j.state, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(j.path), 0o700); err != nil {
		return fmt.Errorf("create directory: %w", err)
	}
	return atomicfile.Write(j.path, append(raw, '\n'), 0o600)
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
