package logging_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/umiak-io/umiak/internal/logging"
)

func TestLibrariesSpeakOneLevelSofterAndCarryAComponent(t *testing.T) {
	var b bytes.Buffer
	own, libraries, err := logging.Setup(logging.Config{Level: "info", Format: "json"}, &b)
	if err != nil {
		t.Fatal(err)
	}
	own.Info("started", "component", "server")
	klog.Info("chatter")
	logrus.Info("chatter")
	klog.Error("klog trouble" + strings.Repeat(" and more", 1000))
	logrus.WithField("id", 7).Warn("logrus trouble")
	libraries.DatastoreFailing(true)
	// of client-go
	cache.DefaultWatchErrorHandler(t.Context(), cache.NewReflector(nil, nil, nil, 0),
		errors.New("chatter without a datastore"))
	libraries.DatastoreFailing(false)
	libraries.Silence()
	klog.Error("parting words")
	if s := b.String(); strings.Contains(s, "parting") || strings.Contains(s, "chatter") {
		t.Fatalf("library chatter is shown:\n%s", s)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("got %d lines:\n%s", len(lines), b.String())
	}
	for i, level := range []string{"INFO", "WARN", "INFO"} {
		var m map[string]any
		if err := json.Unmarshal([]byte(lines[i]), &m); err != nil || m["component"] == nil || m["level"] != level ||
			len(lines[i]) > 1500 {
			t.Fatalf("%v, want level %s in %s", err, level, lines[i])
		}
	}
}

func TestBadChoicesAreRefused(t *testing.T) {
	for _, c := range []logging.Config{{Level: "loud", Format: "text"}, {Level: "info", Format: "xml"}} {
		if _, _, err := logging.Setup(c, &bytes.Buffer{}); err == nil {
			t.Fatalf("accepted %+v", c)
		}
	}
}

func TestWhatIsSaidAgainAndAgainIsCutShort(t *testing.T) {
	var b bytes.Buffer
	_, libraries, err := logging.Setup(logging.Config{Level: "info", Format: "text"}, &b)
	if err != nil {
		t.Fatal(err)
	}
	defer libraries.Silence()
	for range 1000 {
		klog.ErrorS(nil, "no node", "node", "n1")
	}
	klog.ErrorS(nil, "no node", "node", "n2")
	if s := b.String(); strings.Count(s, "n1") != 3 || strings.Count(s, "n2") != 1 {
		t.Errorf("%d lines:\n%.2000s", strings.Count(s, "\n"), s)
	}
	b.Reset()
	for i := range 1000 { // one place in the code, another text each time
		klog.ErrorS(nil, "no pod", "pod", i, "took", time.Duration(i))
	}
	if n := strings.Count(b.String(), "no pod"); n == 0 || n > 10 {
		t.Errorf("%d lines:\n%.2000s", n, b.String())
	}
}

func TestWhatIsMeantIsNoWarning(t *testing.T) {
	var b bytes.Buffer
	_, libraries, err := logging.Setup(logging.Config{Level: "info", Format: "text"}, &b)
	if err != nil {
		t.Fatal(err)
	}
	defer libraries.Silence()
	utilruntime.HandleError(errors.New(`admission webhook "policy.example.org" denied the request: no latest`))
	klog.Warningf("rejected by webhook %q: %#v", "policy.example.org", errors.New("no latest"))
	logrus.Errorf("error in txn compare:{} success:{request_put:{value:%q}}: Unavailable", "a secret")
	utilruntime.HandleError(errors.New("failed calling webhook"))
	if s := b.String(); strings.Contains(s, "latest") || strings.Contains(s, "secret") ||
		!strings.Contains(s, "failed calling") {
		t.Errorf("the log:\n%s", s)
	}
}
