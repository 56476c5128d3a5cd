package logging_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"

	"github.com/umiak-io/umiak/internal/logging"
)

func TestLibrariesSpeakOneLevelSofterAndCarryAComponent(t *testing.T) {
	var b bytes.Buffer
	own, hush, err := logging.Setup(logging.Config{Level: "info", Format: "json"}, &b)
	if err != nil {
		t.Fatal(err)
	}
	own.Info("started", "component", "server")
	klog.Info("chatter")
	logrus.Info("chatter")
	klog.Error("klog trouble" + strings.Repeat(" and more", 1000))
	logrus.WithField("id", 7).Warn("logrus trouble")
	hush()
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
		if err := json.Unmarshal([]byte(lines[i]), &m); err != nil || m["component"] == nil || m["level"] != level || len(lines[i]) > 1500 {
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
	_, hush, err := logging.Setup(logging.Config{Level: "info", Format: "text"}, &b)
	if err != nil {
		t.Fatal(err)
	}
	defer hush()
	for range 1000 {
		klog.ErrorS(nil, "no node", "node", "n1")
	}
	klog.ErrorS(nil, "no node", "node", "n2")
	if s := b.String(); strings.Count(s, "n1") != 10 || strings.Count(s, "n2") != 1 {
		t.Errorf("%d lines:\n%.2000s", strings.Count(s, "\n"), s)
	}
}
