package check

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/agent/runtime/registries"
	"github.com/umiak-io/umiak/internal/secretfiles"
)

// registrySettings reads the registries file as the node does.
func registrySettings(_ context.Context, cfg Config) []Result {
	const name = "registry settings"
	if _, err := os.Stat(cfg.Registries); cfg.Registries == "" || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	s, err := registries.Read(cfg.Registries)
	if err != nil {
		return []Result{missing(name, "correct the file; until then no image can be pulled after a start", "%s",
			oneLine(err))}
	}
	if err := s.Unreadable(); err != nil {
		return []Result{warn(name, "put the files in place, or correct their names in "+cfg.Registries, "%s",
			oneLine(err))}
	}
	return []Result{ok(name, "%s: mirrors for %d registries, settings for %d hosts", cfg.Registries, len(s.Mirrors),
		len(s.Configs))}
}

// secretFiles lists files with secrets that users other than root can read.
func secretFiles(_ context.Context, cfg Config) (out []Result) {
	files := slices.Clone(cfg.Exposed)
	if s, err := registries.Read(cfg.Registries); err == nil && s.Secret() {
		if problem := secretfiles.File(cfg.Registries); problem != "" {
			files = append(files, problem)
		}
	}
	for _, problem := range files {
		what, remedy, _ := strings.Cut(problem, ": ")
		out = append(out, warn("files with secrets", remedy, "%s", what))
	}
	return out
}

// unusedSettings lists what looks like a setting and has no effect.
func unusedSettings(_ context.Context, cfg Config) (out []Result) {
	for _, why := range cfg.Remarks {
		out = append(out, warn("settings", "correct the name, or remove it", "%s", why))
	}
	return out
}

// oneLine joins the lines of an error: a result is one line.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
