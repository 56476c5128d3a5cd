package upgrade

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/filelock"
	"github.com/umiak-io/umiak/internal/upgrades"
)

// Follower upgrades this node when the cluster requests it with an annotation of the Node. The work is done by another
// process, `umiak upgrade --asked`, because this process is replaced.
type Follower struct {
	Version string // the running version
	Node    cache.SharedIndexInformer
	Say     func(context.Context, upgrades.Answer) error // writes the annotation
	Dir     string                                       // folder of request, answer and log
	Lock    string                                       // lock file of upgrades
	Start   func() (wait func() error, err error)        // starts the other process
	Log     *slog.Logger
}

// Files in Follower.Dir.
const (
	requestFile = "request.json"
	answerFile  = "answer.json"
	logFile     = "log"
)

const (
	// maxAttempts bounds how often a request is started that ends without an answer, for example by a power failure.
	maxAttempts = 3
	// answerRetry is the pause after a failed attempt to answer.
	answerRetry = 5 * time.Second
	// maxFile bounds the size in bytes of request and answer.
	maxFile = 64 << 10
)

// started is a request with the number of attempts.
type started struct {
	upgrades.Request
	Times int `json:"times"`
}

// Run follows the Node until ctx ends.
func (f *Follower) Run(ctx context.Context, ready func()) error {
	wake := make(chan struct{}, 1)
	changed := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	reg, err := f.Node.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { changed() },
		UpdateFunc: func(a, b any) {
			before, _ := a.(*corev1.Node)
			after, _ := b.(*corev1.Node)
			if before != nil && after != nil &&
				before.Annotations[upgrades.AskedFor] != after.Annotations[upgrades.AskedFor] {
				changed()
			}
		},
	})
	if err != nil {
		return fmt.Errorf("follow the Node: %w", err)
	}
	defer f.Node.RemoveEventHandler(reg) //nolint:errcheck // the informer ends with the process
	ready()
	s := &following{Follower: f, ended: make(chan error, 1)}
	defer s.unwatch()
	for {
		again, err := s.step(ctx)
		if err != nil {
			f.Log.Warn("cannot report an upgrade to the cluster, trying again", "error", err, "in", answerRetry)
			again = answerRetry
		}
		var later <-chan time.Time
		if again > 0 {
			later = time.After(again)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-later:
		case err := <-s.ended:
			s.running = false
			f.Log.Info("the upgrade that the cluster requested has ended", "error", err)
		case <-s.events():
		}
	}
}

// following is the state of Follower.Run.
type following struct {
	*Follower
	running bool // this process has started an upgrade that has not ended
	ended   chan error
	files   *fsnotify.Watcher // not nil while another process upgrades
}

func (s *following) events() <-chan fsnotify.Event {
	if s.files == nil {
		return nil
	}
	return s.files.Events
}

func (s *following) unwatch() {
	if s.files != nil {
		_ = s.files.Close() // holds no data
		s.files = nil
	}
}

// step performs the next action. It returns the time until the next call; 0 means to wait for an event.
func (s *following) step(ctx context.Context) (time.Duration, error) {
	annotations := s.annotations()
	r, ok := upgrades.Annotation[upgrades.Request](annotations, upgrades.AskedFor)
	if !ok || s.running {
		return 0, nil
	}
	if a, ok := upgrades.Annotation[upgrades.Answer](annotations, upgrades.Answered); ok && a.ID == r.ID {
		return 0, nil
	}
	answer := func(a upgrades.Answer) (time.Duration, error) {
		s.unwatch()
		a.ID, a.Version = r.ID, s.Version
		if a.Error == "" && a.Version != r.Version {
			a.Error = fmt.Sprintf("it was installed, but reports version %s instead of %s", a.Version, r.Version)
		}
		if a.Ended.IsZero() {
			a.Ended = time.Now().UTC().Truncate(time.Second)
		}
		return 0, s.Say(ctx, a)
	}
	held := filelock.Held(s.Lock) // check the lock first: the answer is written before it is released
	a, err := read[upgrades.Answer](filepath.Join(s.Dir, answerFile))
	switch {
	case err != nil:
		return 0, err
	case a.ID == r.ID:
		return answer(a)
	case held:
		if s.files != nil {
			return 0, nil
		}
		if s.files, err = fsnotify.NewWatcher(); err == nil {
			err = s.files.Add(s.Dir)
		}
		return time.Millisecond, err // check once more: it may have ended meanwhile
	case s.Version == r.Version:
		return answer(upgrades.Answer{})
	}
	b, err := read[started](filepath.Join(s.Dir, requestFile))
	if err != nil {
		return 0, err
	}
	if b.ID != r.ID {
		b.Times = 0
	}
	if b.Times >= maxAttempts {
		return answer(upgrades.Answer{Error: fmt.Sprintf("it was started %d times and ended without a result; see %s",
			maxAttempts, filepath.Join(s.Dir, logFile))})
	}
	s.unwatch()
	s.Log.Info("the cluster requests an upgrade of this node", "from", s.Version, "to", r.Version, "try", b.Times+1)
	if err := s.start(started{r, b.Times + 1}); err != nil {
		return answer(upgrades.Answer{Error: err.Error()})
	}
	return 0, nil
}

func (s *following) annotations() map[string]string {
	for _, o := range s.Node.GetStore().List() { // it holds one Node
		if n, ok := o.(*corev1.Node); ok {
			return n.Annotations
		}
	}
	return nil
}

func (s *following) start(b started) error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return fmt.Errorf("create directory: %w", err)
	}
	if err := write(filepath.Join(s.Dir, requestFile), b); err != nil {
		return err
	}
	wait, err := s.Start()
	if err != nil {
		return fmt.Errorf("start the upgrade: %w", err)
	}
	s.running = true
	go func() { s.ended <- wait() }() // this process may end before it
	return nil
}

// Process returns a function that starts `program upgrade --asked` in a new session and, under systemd, outside the
// service that it is going to restart.
func Process(program string, args ...string) func() (wait func() error, err error) {
	return func() (func() error, error) {
		line := append([]string{program, "upgrade", "--asked"}, args...)
		if _, err := os.Stat("/run/systemd/system"); err == nil { // sd_booted(3)
			line = append([]string{"systemd-run", "--scope", "--quiet", "--collect", "--"}, line...)
		}
		cmd := exec.Command(line[0], line[1:]...) //nolint:noctx // it outlives this process
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		// It must not notify systemd on behalf of the service.
		cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "NOTIFY_SOCKET=") })
		return cmd.Wait, cmd.Start()
	}
}

// baseVariable is the variable in which install.sh stores where it found the release.
const baseVariable = "INSTALL_UMIAK_BASE_URL"

// permits returns an error for a place of releases that the node's owner has not configured: otherwise, anyone who can
// write a Node could make root read or fetch any file.
func (cfg Config) permits(source string) error {
	if source == "" {
		return nil
	}
	env, err := config.ServiceEnvironment(cfg.Etc)
	if err != nil {
		return err
	}
	same := func(a string) bool {
		return a != "" && strings.TrimRight(a, "/") == strings.TrimRight(source, "/")
	}
	if base := env[baseVariable]; same(base) || slices.ContainsFunc(cfg.Sources, same) {
		return nil
	}
	return fmt.Errorf(
		"the cluster requests a release from %q, which is neither where this node was installed from nor in its setting upgrade-sources", source)
}

// Asked is `umiak upgrade --asked`: it executes the request in dir and writes the answer there. A request can install
// only a program, and no older one. Without an answer, as after an interruption, the node's next start tries again.
func Asked(ctx context.Context, cfg Config, dir string) (err error) {
	b, err := read[started](filepath.Join(dir, requestFile))
	if err != nil {
		return err
	}
	if b.ID == "" {
		return fmt.Errorf("%s: there is no request of the cluster", dir)
	}
	f, err := os.OpenFile(filepath.Join(dir, logFile), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer f.Close() //nolint:errcheck // a log for people
	var output tail
	cfg.Version, cfg.Base, cfg.Out, cfg.programOnly = b.Version, b.Source, io.MultiWriter(f, &output), true
	a := upgrades.Answer{ID: b.ID}
	err = cfg.permits(b.Source)
	if err == nil {
		err = Run(ctx, cfg)
	}
	if err != nil && ctx.Err() != nil {
		return err
	}
	if err != nil {
		a.Error = strings.TrimSpace(strings.TrimSpace(output.String()) + "\n" + err.Error())
	}
	a.Ended = time.Now().UTC().Truncate(time.Second)
	return write(filepath.Join(dir, answerFile), a)
}

// tail keeps the last maxTail bytes written to it.
type tail struct{ bytes.Buffer }

const maxTail = 1200

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	t.Buffer.Write(p[max(0, n-maxTail):])
	t.Next(max(0, t.Len()-maxTail))
	return n, nil
}

// read reads a file that another process has written. A missing file gives the zero value.
func read[T any](file string) (v T, err error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	if err != nil {
		return v, err
	}
	defer f.Close() //nolint:errcheck // only read
	if err := json.NewDecoder(io.LimitReader(f, maxFile)).Decode(&v); err != nil {
		return v, fmt.Errorf("read %s: %w", file, err)
	}
	return v, nil
}

func write(file string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", file, err)
	}
	return atomicfile.Write(file, raw, 0o600)
}
