// Package settingstest has the checks that the tests of server's and agent's settings share.
//
// It imports internal/config.
package settingstest

import (
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/config"
)

// EveryKeyIsSet fails for each setting of cfg that is neither a key in one of the YAML texts nor one of the keys.
func EveryKeyIsSet(t *testing.T, cfg any, texts []string, keys ...string) {
	t.Helper()
	tested := map[string]bool{}
	for _, key := range keys {
		tested[key] = true
	}
	for line := range strings.Lines(strings.Join(texts, "\n")) {
		key, _, _ := strings.Cut(line, ":")
		tested[key] = true
	}
	for _, s := range config.Describe(cfg) {
		if !tested[s.Key] {
			t.Errorf("%s: no test of Validate sets it; add a value that is refused, or one that is accepted", s.Key)
		}
	}
}

// SameMistakes fails where read does not report the mistakes of a text twenty times as in first.
func SameMistakes(t *testing.T, first error, text string, read func(text string) error) {
	t.Helper()
	for range 20 {
		if again := read(text); again.Error() != first.Error() {
			t.Fatalf("first\n%v\nthen\n%v", first, again)
		}
	}
}
