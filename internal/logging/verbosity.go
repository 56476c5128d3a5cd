package logging

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"path"
	"strconv"
	"strings"

	"k8s.io/klog/v2"
)

// Verbosities of klog.
const (
	debugVerbosity   = 4 // from here on, umiak's own level is debug
	contentVerbosity = 8 // from here on, client-go logs what requests contain
	maxVerbosity     = 10
)

// module is the verbosity of the source files whose base name, without .go, matches the pattern (klog's vmodule).
type module struct {
	pattern   string
	verbosity int
}

// parseModules reads PATTERN=NUMBER.
func parseModules(texts []string) (out []module, err error) {
	var errs []error
	for _, text := range texts {
		pattern, number, _ := strings.Cut(text, "=")
		n, err := strconv.Atoi(number)
		if _, bad := path.Match(pattern, ""); err != nil || bad != nil || pattern == "" || n < 0 || n > maxVerbosity {
			errs = append(errs, fmt.Errorf("vmodule: %q is not PATTERN=NUMBER such as reflector=6 or kubelet*=4", text))
			continue
		}
		out = append(out, module{pattern, n})
	}
	return out, errors.Join(errs...)
}

// enables reports whether a record of the level may be written for some file.
func enables(modules []module, l slog.Level) bool {
	for _, m := range modules {
		if l >= slog.Level(-m.verbosity) {
			return true
		}
	}
	return false
}

// matches reports whether a record of the level is written for this file.
func matches(modules []module, file string, l slog.Level) bool {
	base := strings.TrimSuffix(path.Base(file), ".go")
	for _, m := range modules {
		if ok, _ := path.Match(m.pattern, base); ok && l >= slog.Level(-m.verbosity) {
			return true
		}
	}
	return false
}

// verbosely returns the handler of klog: h, or where the settings ask for more than klog's default, one without limits
// that lets as much through. It also sets klog's own verbosity, which decides for code without a contextual logger.
func (h *library) verbosely(c Config) (*library, error) {
	modules, err := parseModules(c.Modules)
	if err != nil {
		return nil, err
	}
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	if err := errors.Join(flags.Set("v", strconv.Itoa(c.Verbosity)),
		flags.Set("vmodule", strings.Join(c.Modules, ","))); err != nil {
		return nil, fmt.Errorf("set klog's verbosity: %w", err)
	}
	if c.Verbosity == 0 && len(modules) == 0 {
		return h, nil
	}
	out := *h
	out.modules, out.limits, out.min = modules, nil, &slog.LevelVar{}
	out.min.Set(h.min.Level())
	if c.Verbosity > 0 {
		out.min.Set(slog.Level(-c.Verbosity))
	}
	return &out, nil
}
