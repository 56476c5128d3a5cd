package dns

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coredns/caddy"
	api "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/agent/dataplane/dns/corefile"
)

// Where `import` finds the two ConfigMaps: where CoreDNS's Deployment and k3s mount them.
const (
	mainFiles   = "/etc/coredns/"
	customFiles = "/etc/coredns/custom/"
)

// compile makes the Corefile to run. What cannot be used of coredns-custom is left out, a server block or a directive
// at a time; left says what and why.
func (s *Server) compile(src source, upstreams []string) (res corefile.Result, left []string, err error) {
	files := src.paths()
	try := func(without map[corefile.Unit]bool) (corefile.Result, error) {
		res, err := corefile.Rewrite(src.corefile(), corefile.Options{
			Bind: s.bind, Port: s.port, Own: append(slices.Clone(s.cfg.ClusterDNS), AddrV4, AddrV6),
			Upstreams: upstreams, Handle: s.handle,
			Files: files, Without: without,
		})
		if err == nil && res.Text != s.running() {
			err = validate(res.Text)
		}
		return res, err
	}
	if res, err = try(nil); err == nil {
		return res, nil, nil
	}
	units, listErr := corefile.Units(src.corefile(), corefile.Options{Files: files})
	units = slices.DeleteFunc(units, func(u corefile.Unit) bool { return !strings.HasPrefix(u.File, customFiles) })
	if listErr != nil || len(units) == 0 {
		return res, nil, place(err)
	}
	without := map[corefile.Unit]bool{}
	for _, u := range units {
		without[u] = true
	}
	if res, err = try(without); err != nil {
		return res, nil, place(err) // not because of coredns-custom
	}
	// add takes units in, all at once where that works, otherwise in halves.
	var add func(units []corefile.Unit)
	add = func(units []corefile.Unit) {
		for _, u := range units {
			delete(without, u)
		}
		r, err := try(without)
		if err == nil {
			res = r
			return
		}
		for _, u := range units {
			without[u] = true
		}
		if len(units) == 1 {
			left = append(left, place(located(units[0], files, err)).Error())
			return
		}
		add(units[:len(units)/2])
		add(units[len(units)/2:])
	}
	add(units)
	return res, left, nil
}

func (s *Server) running() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current.text
}

// located gives an error that a unit causes its place, if it has none in the unit's file.
func located(u corefile.Unit, files map[string]string, err error) error {
	var at *corefile.Error
	if errors.As(err, &at) && at.File == u.File {
		return at
	}
	if at != nil {
		err = at.Err
	}
	return corefile.Locate(u, files[u.File], err)
}

// place words the place of an error as a ConfigMap's key and line.
func place(err error) error {
	var at *corefile.Error
	if !errors.As(err, &at) {
		return fmt.Errorf("ConfigMap %s/%s, key Corefile: %w", Namespace, ConfigMap, err)
	}
	name, key := ConfigMap, "Corefile"
	if k, ok := strings.CutPrefix(at.File, customFiles); ok {
		name, key = CustomConfigMap, k
	} else if k, ok := strings.CutPrefix(at.File, mainFiles); ok {
		key = k
	}
	return fmt.Errorf("ConfigMap %s/%s, key %s, line %d: %w", Namespace, name, key, at.Line, at.Err)
}

// validate has every plugin read its part of a rewritten Corefile and starts nothing.
func validate(text string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("a plugin panicked: %v", r)
		}
	}()
	return caddy.ValidateAndExecuteDirectives(caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(text),
		ServerTypeName: "dns"}, nil, true)
}

// reportLeft logs the parts of the configuration that are newly left out, and records Events about them.
func (s *Server) reportLeft(before, now []string) {
	s.mu.Lock()
	object := s.objects[CustomConfigMap]
	s.mu.Unlock()
	for _, l := range now {
		if slices.Contains(before, l) {
			continue
		}
		s.log.Warn("part of the DNS configuration cannot be used, the rest is", "error", l)
		if object != nil {
			s.events.Eventf(object, api.EventTypeWarning, "InvalidCorefile", "left out, the rest is in use: %s", l)
		}
	}
}
