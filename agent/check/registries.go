package check

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/umiak-io/umiak/agent/registries"
)

// registrySettings reads the file with mirrors and credentials as the node does.
func registrySettings(_ context.Context, cfg Config) []Result {
	const name = "registry settings"
	if _, err := os.Stat(cfg.Registries); cfg.Registries == "" || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	s, err := registries.Read(cfg.Registries)
	if err != nil {
		return []Result{missing(name, "correct the file; until then no image can be pulled after a start", "%s", oneLine(err))}
	}
	if err := s.Unreadable(); err != nil {
		return []Result{warn(name, "put the files in place, or correct their names in "+cfg.Registries, "%s", oneLine(err))}
	}
	return []Result{ok(name, "%s: mirrors for %d registries, settings for %d hosts", cfg.Registries, len(s.Mirrors), len(s.Configs))}
}

// oneLine joins an error's lines: a result is printed as one.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
