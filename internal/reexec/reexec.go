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

// Reason says why the process before this one ended.
type Reason struct {
	Part  string    `json:"part,omitempty"` // empty for a panic
	Error string    `json:"error"`
	At    time.Time `json:"at"`
	// Count is how often in a row the part has ended the process.
	Count int `json:"count,omitempty"`
}

// String names the part and its error.
func (r Reason) String() string {
	if r.Part == "" {
		return r.Error
	}
	return r.Part + ": " + r.Error
}

// steady is how long a process must have run for the next end of it to count as the first.
const steady = 20 * time.Minute

// Pause is how long the part waits before it starts again. Everything else starts at once.
func (r Reason) Pause() time.Duration {
	return time.Second * time.Duration(math.Pow(2, float64(min(r.Count-1, 9)))) // up to 8.5 minutes
}

// Store is the folder in which reasons are kept, on a tmpfs.
type Store struct{ Dir string }

func (s Store) file() string  { return filepath.Join(s.Dir, "restarted.json") }
func (s Store) crash() string { return filepath.Join(s.Dir, "panic.txt") }

// Last returns why the last process ended, nil if it ended because it was told to, or is not known to have run.
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

// Note keeps why the process ends, and counts.
func (s Store) Note(part string, reason error, now time.Time) (Reason, error) {
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

// Forget removes the reason: the process ends because it was told to.
func (s Store) Forget() error {
	if err := os.Remove(s.file()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// KeepPanics has Go's runtime write a panic of this process to a file as well. If the process before left one, it
// becomes the reason that Last returns, and its text is returned.
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
	defer f.Close() //nolint:errcheck // the runtime has a descriptor of its own
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

// Exec replaces this process by a new run of its own program with the same arguments. It returns only if that fails.
func Exec(env []string) error {
	// Go opens all files so that they are closed; this is for those that a library may have opened otherwise.
	_ = unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) // Linux 5.11; without it they stay open
	// The very file that runs, also if another has its name by now: which program runs is for an upgrade to decide, which
	// tries the new one first and restarts the service.
	if err := syscall.Exec("/proc/self/exe", os.Args, env); err != nil {
		return fmt.Errorf("execute this program anew: %w", err)
	}
	return nil
}

// TakeName gives a process that Exec has started the name of its program: the kernel has named it after the last part of
// /proc/self/exe.
func TakeName() error {
	return os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0) // cut to 15 bytes by the kernel
}

// ReapChildren waits for the children that the program had before it executed itself anew: nobody else does.
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
