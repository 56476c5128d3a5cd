package upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/umiak-io/umiak/internal/filelock"
	"github.com/umiak-io/umiak/internal/upgrades"
)

// rig is a Follower whose other process is the test.
type rig struct {
	*testing.T
	client *fake.Clientset
	f      *Follower
	starts chan func() // each ends the process
	said   chan upgrades.Answer
}

func newRig(t *testing.T) *rig {
	dir := t.TempDir()
	r := &rig{T: t, client: fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}),
		starts: make(chan func(), 10), said: make(chan upgrades.Answer, 10)}
	r.f = &Follower{
		Version: "v1", Dir: filepath.Join(dir, "upgrade"), Lock: filepath.Join(dir, "lock"),
		Log: slog.New(slog.DiscardHandler),
		Say: func(_ context.Context, a upgrades.Answer) error { r.said <- a; return nil },
		Start: func() (func() error, error) {
			done := make(chan struct{})
			r.starts <- func() { close(done) }
			return func() error { <-done; return nil }, nil
		},
	}
	return r
}

// run starts the Follower, as the agent does; the function that it returns ends it.
func (r *rig) run() (stop func()) {
	ctx, cancel := context.WithCancel(r.Context())
	informer := informers.NewSharedInformerFactory(r.client, 0)
	r.f.Node = informer.Core().V1().Nodes().Informer()
	informer.Start(ctx.Done())
	informer.WaitForCacheSync(ctx.Done())
	done := make(chan error, 1)
	go func() { done <- r.f.Run(ctx, func() {}) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			r.Error(err)
		}
	}
	return stop
}

func (r *rig) ask(id string) {
	r.Helper()
	raw, err := json.Marshal(upgrades.Request{ID: id, Version: "v2"})
	if err == nil {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n",
			Annotations: map[string]string{upgrades.AskedFor: string(raw)}}}
		_, err = r.client.CoreV1().Nodes().Update(r.Context(), n, metav1.UpdateOptions{})
	}
	if err != nil {
		r.Fatal(err)
	}
}

func wait[T any](r *rig, c <-chan T) (v T) {
	r.Helper()
	select {
	case v = <-c:
	case <-time.After(10 * time.Second):
		r.Fatal("it does not come")
	}
	return v
}

// ends is what the other process leaves.
func (r *rig) ends(id, why string) {
	r.Helper()
	if err := write(filepath.Join(r.f.Dir, answerFile), upgrades.Answer{ID: id, Error: why}); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) quiet() {
	r.Helper()
	select {
	case <-r.starts:
		r.Error("it was started once more")
	case a := <-r.said:
		r.Errorf("it said %+v", a)
	case <-time.After(50 * time.Millisecond):
	}
}

func TestFollower(t *testing.T) {
	t.Run("Upgraded", func(t *testing.T) {
		r := newRig(t)
		stop := r.run()
		r.ask("a")
		wait(r, r.starts)
		release, err := filelock.Try(r.f.Lock)
		if err != nil {
			t.Fatal(err)
		}
		stop() // the other process has replaced this one
		r.f.Version = "v2"
		stop = r.run()
		r.quiet() // it may yet go back
		r.ends("a", "")
		release()
		if a := wait(r, r.said); a.ID != "a" || a.Error != "" || a.Version != "v2" || a.Ended.IsZero() {
			t.Errorf("got %+v", a)
		}
		stop()
	})
	t.Run("Refused", func(t *testing.T) {
		r := newRig(t)
		stop := r.run()
		r.ask("a")
		end := wait(r, r.starts)
		r.ends("a", "no space")
		end()
		if a := wait(r, r.said); a.Error != "no space" || a.Version != "v1" {
			t.Errorf("got %+v", a)
		}
		r.ask("b")
		wait(r, r.starts)
		stop()
	})
	t.Run("AnotherProgramThanItSays", func(t *testing.T) {
		r := newRig(t)
		stop := r.run()
		r.ask("a")
		end := wait(r, r.starts)
		r.ends("a", "")
		end()
		if a := wait(r, r.said); !strings.Contains(a.Error, "reports version v1") {
			t.Errorf("got %+v", a)
		}
		stop()
	})
	t.Run("BreaksOff", func(t *testing.T) {
		r := newRig(t)
		stop := r.run()
		r.ask("a")
		wait(r, r.starts)() // without an answer
		wait(r, r.starts)
		stop() // as by a power cut
		stop = r.run()
		wait(r, r.starts)()
		if a := wait(r, r.said); !strings.Contains(a.Error, "without a result") {
			t.Errorf("got %+v", a)
		}
		stop()
	})
	t.Run("ByHand", func(t *testing.T) {
		r := newRig(t)
		r.f.Version = "v2"
		stop := r.run()
		r.ask("a")
		if a := wait(r, r.said); a.Error != "" {
			t.Errorf("got %+v", a)
		}
		stop()
	})
}

func TestAsked(t *testing.T) {
	etc, dir := t.TempDir(), t.TempDir()
	cfg := Config{Etc: etc, Lock: filepath.Join(dir, "lock"), Sources: []string{"there/"}}
	if err := Asked(t.Context(), cfg, dir); err == nil || !strings.Contains(err.Error(), "no request of the cluster") {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(filepath.Join(etc, Script),
		[]byte(`echo "$INSTALL_UMIAK_ONLY $INSTALL_UMIAK_VERSION from $INSTALL_UMIAK_BASE_URL"; [ "$INSTALL_UMIAK_VERSION" != bad ]`), 0o700); err != nil {
		t.Fatal(err)
	}
	for version, want := range map[string]string{"v2": "",
		"bad": "program bad from there\nnot upgraded: install.sh: exit status 1"} {
		err := write(filepath.Join(dir, requestFile),
			started{upgrades.Request{ID: version, Version: version, Source: "there"}, 1})
		if err == nil {
			err = Asked(t.Context(), cfg, dir)
		}
		a, e := read[upgrades.Answer](filepath.Join(dir, answerFile))
		if err != nil || e != nil || a.ID != version || a.Error != want {
			t.Errorf("%s: got %+v, %v, %v", version, a, err, e)
		}
	}
	if log, err := os.ReadFile(filepath.Join(dir, logFile)); err != nil ||
		!strings.Contains(string(log), "from there") {
		t.Errorf("log: %q, %v", log, err)
	}
	// An interruption, as by a shutdown of the machine, is no answer: the next start tries again.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := errors.Join(os.Remove(filepath.Join(dir, answerFile)), Asked(ctx, cfg, dir)); !errors.Is(err,
		context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if a, err := read[upgrades.Answer](filepath.Join(dir, answerFile)); err != nil || a.ID != "" {
		t.Errorf("interrupted: the answer is %+v, %v", a, err)
	}
	// From where the node was installed, and from where its settings say, and from nowhere else.
	if err := os.WriteFile(filepath.Join(etc, "umiak.env"),
		[]byte("INSTALL_UMIAK_BASE_URL='https://mirror.lan/releases'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for source, ok := range map[string]bool{
		"": true, "there": true, "https://mirror.lan/releases/": true,
		"https://mirror.lan/releases2": false, "http://mirror.lan/releases": false,
		"/var/lib/umiak/agent/kubelet/pods/x": false, "/": false,
	} {
		err := write(filepath.Join(dir, requestFile),
			started{upgrades.Request{ID: "s" + source, Version: "v2", Source: source}, 1})
		if err == nil {
			err = Asked(t.Context(), cfg, dir)
		}
		a, e := read[upgrades.Answer](filepath.Join(dir, answerFile))
		if err != nil || e != nil || (a.Error == "") != ok || !ok && !strings.Contains(a.Error, "upgrade-sources") {
			t.Errorf("%q: got %+v, %v, %v", source, a, err, e)
		}
	}
}
