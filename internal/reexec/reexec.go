package reexec

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

// Reason is the reason why the previous run ended.
type Reason struct {
	Part  string    `json:"part,omitempty"` // empty for a panic
	Error string    `json:"error"`
	At    time.Time `json:"at"`
	// Count is the number of runs in a row that the part has ended.
	Count int `json:"count,omitempty"`
}

// String returns the part and its error.
func (r Reason) String() string {
	if r.Part == "" {
		return r.Error
	}
	return r.Part + ": " + r.Error
}

// steady is the duration of a run after which Count begins again.
const steady = 20 * time.Minute

// Pause returns the time that the part waits before it starts again. The other parts start at once.
func (r Reason) Pause() time.Duration {
	return time.Second * time.Duration(math.Pow(2, float64(min(r.Count-1, 9)))) // up to 8.5 minutes
}

// Store is the folder, on a tmpfs, in which the reason is stored.
type Store struct{ Dir string }

func (s Store) file() string  { return filepath.Join(s.Dir, "restarted.json") }
func (s Store) crash() string { return filepath.Join(s.Dir, "panic.txt") }

// Last returns the reason why the previous run ended. It returns nil if that run was stopped, or if there was none.
func (s Store) Last() (*Reason, error) {
	raw, err := os.ReadFile(s.file())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read why umiak was restarted: %w", err)
	}
	var r Reason
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("read %s: %w", s.file(), err)
	}
	return &r, nil
}

// Save stores the reason why the process ends, and returns it with its count.
func (s Store) Save(part string, reason error, now time.Time) (Reason, error) {
	r := Reason{Part: part, Error: strings.ReplaceAll(reason.Error(), "\n", "; "), At: now, Count: 1}
	if last, err := s.Last(); err == nil && last != nil && last.Part == part && now.Sub(last.At) < last.Pause()+steady {
		r.Count = last.Count + 1
	}
	return r, s.write(r)
}

func (s Store) write(r Reason) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return atomicfile.Write(s.file(), append(raw, '\n'), 0o600)
}

// Forget removes the reason, for a process that is stopped.
func (s Store) Forget() error {
	if err := os.Remove(s.file()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// KeepPanics makes Go's runtime also write a panic of this process to a file. If the previous run left one, KeepPanics
// makes it the reason that Last returns, and returns its text.
func (s Store) KeepPanics() (text string, err error) {
	raw, err := os.ReadFile(s.crash())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the last panic: %w", err)
	}
	if text = string(raw); text != "" {
		at := time.Now()
		if st, err := os.Stat(s.crash()); err == nil {
			at = st.ModTime()
		}
		if err := s.write(Reason{Error: firstLine(text), At: at}); err != nil {
			return text, err
		}
		if err := os.Rename(s.crash(), s.crash()+".last"); err != nil {
			return text, fmt.Errorf("keep the last panic: %w", err)
		}
	}
	f, err := os.OpenFile(s.crash(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return text, fmt.Errorf("prepare for panics: %w", err)
	}
	defer f.Close() //nolint:errcheck // the runtime has its own descriptor
	if err := debug.SetCrashOutput(f, debug.CrashOptions{}); err != nil {
		return text, fmt.Errorf("prepare for panics: %w", err)
	}
	return text, nil
}

func firstLine(text string) string {
	sc := bufio.NewScanner(strings.NewReader(text))
	for sc.Scan() {
		if l := strings.TrimSpace(sc.Text()); l != "" {
			return l
		}
	}
	return "panic"
}

// Exec replaces this process by a new run of its program with the same arguments. It returns only if that fails.
func Exec(env []string) error {
	// Go opens files with O_CLOEXEC; this is for files that a library may have opened without.
	_ = unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) // Linux 5.11; without it they stay open
	// This is the file that runs, even if another file has its name by now: only an upgrade, which tries the new
	// program first and restarts the service, changes the program.
	if err := syscall.Exec("/proc/self/exe", os.Args, env); err != nil {
		return fmt.Errorf("execute this program again: %w", err)
	}
	return nil
}

// TakeName sets the name of a process that Exec has started, which the kernel took from the path /proc/self/exe, to the
// name of its program.
func TakeName() error {
	return os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0) // cut to 15 bytes by the kernel
}

// ReapChildren waits for the children of the process that were started before Exec.
func ReapChildren() {
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, t := range tasks {
		raw, err := os.ReadFile(t)
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(raw)) {
			var pid int
			if _, err := fmt.Sscan(f, &pid); err == nil {
				go func() { _, _ = syscall.Wait4(pid, nil, 0, nil) }()
			}
		}
	}
}
