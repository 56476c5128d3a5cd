package logging

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestDigest(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1000, 0)
	d := NewDigest(slog.New(slog.NewTextHandler(&out, nil)), func() time.Time { return now }, "refused")
	for range 1000 {
		d.Add("192.0.2.1", "no")
	}
	now = now.Add(digestInterval)
	d.Add("192.0.2.2", "no")
	if got := out.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "others-since-last-line=999") {
		t.Errorf("%s", got)
	}
	now = now.Add(-time.Hour) // the clock is set back
	d.Add("192.0.2.3", "no")
	if strings.Count(out.String(), "\n") != 3 {
		t.Errorf("%s", out.String())
	}
}
