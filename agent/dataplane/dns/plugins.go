package dns

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/kubernetes"
	"github.com/coredns/coredns/plugin/metrics"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	mdns "github.com/miekg/dns"
	"k8s.io/client-go/tools/cache"

	"github.com/umiak-io/umiak/agent/dataplane/dns/corefile"

	// Each of these registers its directive.
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/rewrite"
	_ "github.com/coredns/coredns/plugin/template"
)

// CoreDNS keeps its plugins, their order and its log in process-wide variables, and gives a plugin's
// setup function nothing but the words of the Corefile. So umiak's directives are registered once for
// the process, and each names the server that it belongs to by a handle in the rewritten Corefile.
var (
	servers  sync.Map // handle -> *Server
	lastID   atomic.Int64
	logSink  atomic.Pointer[slog.Logger]
	register = sync.OnceValue(func() error {
		plugin.Register(corefile.Kubernetes, setupKubernetes)
		plugin.Register(corefile.Metrics, setupMetrics)
		plugin.Register(corefile.Loop, setupLoop)
		plugin.Register(corefile.Nowhere, setupNowhere)
		return joinErrs(dnsserver.SetDirectives(corefile.Order()), captureLog())
	})
)

func joinErrs(errs ...error) error {
	for _, e := range errs {
		if e != nil {
			return fmt.Errorf("set up CoreDNS: %w", e)
		}
	}
	return nil
}

// captureLog leads CoreDNS's log into ours, with levels. Configure also takes over the standard log
// package's output, which is not ours to take: it is put back.
func captureLog() error {
	w, flags, prefix := log.Writer(), log.Flags(), log.Prefix()
	err := clog.Configure("json", logWriter{})
	log.SetOutput(w)
	log.SetFlags(flags)
	log.SetPrefix(prefix)
	return err
}

type logWriter struct{}

func (logWriter) Write(p []byte) (int, error) {
	l := logSink.Load()
	if l == nil {
		return len(p), nil
	}
	var rec struct {
		Level  slog.Level `json:"level"`
		Msg    string     `json:"msg"`
		Plugin string     `json:"plugin"`
	}
	if err := json.Unmarshal(p, &rec); err != nil {
		l.Warn(string(p))
		return len(p), nil
	}
	if rec.Plugin != "" {
		l = l.With("plugin", rec.Plugin)
	}
	l.Log(context.Background(), rec.Level, rec.Msg)
	return len(p), nil
}

func owner(c *caddy.Controller, name string) (*Server, error) {
	if !c.NextArg() {
		return nil, plugin.Error(name, c.ArgErr())
	}
	s, ok := servers.Load(c.Val())
	if !ok {
		return nil, plugin.Error(name, fmt.Errorf("no server %q", c.Val()))
	}
	return s.(*Server), nil
}

// setupKubernetes is upstream's plugin, parser and answers, over the agent's informers.
func setupKubernetes(c *caddy.Controller) error {
	const name = "kubernetes"
	c.Next()
	s, err := owner(c, name)
	if err != nil {
		return err
	}
	v := &view{cluster: s.cluster}
	verified := false
	for scan := c.Dispenser; scan.Next(); { // a copy: upstream's parser reads the same words below
		switch prop := scan.Val(); prop {
		case "labels", "namespace_labels":
			sel, err := selector(scan.RemainingArgs())
			if err != nil {
				return plugin.Error(name, fmt.Errorf("%s: %w", prop, err))
			}
			if prop == "labels" {
				v.selector = sel
			} else {
				v.nsSelector = sel
			}
		case "noendpoints":
			v.noEndpoints = true
		case "zonal":
			v.zonal = true
		case "pods":
			verified = scan.NextArg() && scan.Val() == "verified"
		}
	}
	k, err := kubernetes.ParseStanza(c)
	if err != nil {
		return plugin.Error(name, err)
	}
	if verified {
		// The one mode that must know every pod of the cluster, so only then are pods watched.
		v.pods = s.cfg.Informers.Core().V1().Pods().Informer()
		if _, have := v.pods.GetIndexer().GetIndexers()[byPodIP]; !have {
			if err := v.pods.AddIndexers(cache.Indexers{byPodIP: podIPs}); err != nil {
				return plugin.Error(name, fmt.Errorf("index pods: %w", err))
			}
		}
		c.OnStartup(func() error { s.startInformers(); return nil })
	}
	k.APIConn = v
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		k.Next = next
		return k
	})
	return nil
}

// setupMetrics counts queries as `prometheus` does, into the process's registry and with no port.
func setupMetrics(c *caddy.Controller) error {
	m := metrics.New("")
	for _, z := range plugin.OriginsFromArgsOrServerBlock(nil, c.ServerBlockKeys) {
		m.AddZone(z)
	}
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		m.Next = next
		return m
	})
	return nil
}

// setupNowhere ends a chain without a server to forward to: SERVFAIL at once, and no line in the log for each query
// of a machine without a network.
func setupNowhere(c *caddy.Controller) error {
	dnsserver.GetConfig(c).AddPlugin(func(plugin.Handler) plugin.Handler {
		return plugin.HandlerFunc(func(context.Context, mdns.ResponseWriter, *mdns.Msg) (int, error) {
			return mdns.RcodeServerFailure, nil
		})
	})
	return nil
}
