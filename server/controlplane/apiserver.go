package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	apiadmission "k8s.io/apiserver/pkg/admission"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/flagz"
	encryptionconfig "k8s.io/apiserver/pkg/server/options/encryptionconfig/controller"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/controlplane"
	"k8s.io/kubernetes/plugin/pkg/admission/noderestriction"

	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/tlspolicy"
	"github.com/umiak-io/umiak/internal/wellknown"
	"github.com/umiak-io/umiak/server/admission"
	"github.com/umiak-io/umiak/server/podview"
)

// APIServer is kube-apiserver.
type APIServer struct {
	settings Settings
	health   *Health
	log      *slog.Logger
	opts     *options.ServerRunOptions
	fronts   []front
	guard    *guard
	egress   Egress
	alone    atomic.Pointer[soleServer] // nil where there may be others
	// Stalled, if set, reports whether the datastore does not answer. Set it before Run.
	Stalled func(context.Context) bool

	accountKeys *accountKeys
	healthOnly  bool   // strangers may ask for health and nothing else
	anonymous   string // what the user has decided otherwise, for the log

	ready chan struct{} // closed when /readyz has been ok
	state running
	late  late
}

// encryptionPoll is the interval at which the API server reads the encryption config, some hundred bytes.
const encryptionPoll = 5 * time.Second

func newAPIServer(s Settings, health *Health, log *slog.Logger) (*APIServer, error) {
	a := &APIServer{settings: s, health: health, log: log.With("component", "kube-apiserver"),
		opts: options.NewServerRunOptions(), ready: make(chan struct{}),
		accountKeys: &accountKeys{file: s.Files.ServiceAccountPublicKey}}
	a.state.set("not started")
	a.late.log = a.log
	a.admit(admission.NewUpgrades(s.UpgradesOff), admission.NewNodes(s.Nodes), admission.NewServices(s.Services),
		admission.NewKubelets(s.Nodes, s.OtherIPAM))
	a.guard = newGuard(s.Nodes)
	health.Register("kube-apiserver", func(ctx context.Context) error {
		return errors.Join(a.state.check(ctx),
			a.late.check(ctx))
	})
	sets := a.opts.Flags()
	err := parse(sets, apiServerFlags(s), "kube-apiserver-arg", s.APIServerArgs, ownedByAPIServer)
	a.opts.Flagz = flagz.NamedFlagSetsReader{FlagSets: sets}
	if !given(s.APIServerArgs, metricFlags...) {
		a.opts.Metrics = nil
	}
	return a, err
}

// plugin is an admission plugin of umiak's.
type plugin interface {
	Name() string
	Register(*apiadmission.Plugins)
}

// admit has plugins run after upstream's own and before webhooks and policies. They are on unless a user turns them
// off.
func (a *APIServer) admit(plugins ...plugin) {
	opts := a.opts.Admission.GenericAdmission
	order := slices.Clone(opts.RecommendedPluginOrder) // upstream's own variable
	at := slices.Index(order, noderestriction.PluginName) + 1
	for _, p := range plugins {
		p.Register(opts.Plugins)
		order = slices.Insert(order, at, p.Name())
	}
	opts.RecommendedPluginOrder = order
}

// apiServerFlags returns the flags that Umiak sets, each that differs from upstream's default with its reason.
func apiServerFlags(s Settings) flags {
	var f flags
	user := s.APIServerArgs
	issuer := "https://kubernetes.default.svc." + s.ClusterDomain

	f.set("bind-address", s.Bind)
	f.setf("secure-port", "%d", s.Port)
	f.set("advertise-address", s.advertised())
	f.set("service-cluster-ip-range", strings.Join(config.Texts(s.ServiceCIDR), ","))
	f.set("service-node-port-range", s.NodePorts)
	f.set("allow-privileged", "true")

	f.set("tls-cert-file", s.Files.ServingCert)
	f.set("tls-private-key-file", s.Files.ServingKey)
	f.set("tls-min-version", "VersionTLS12")
	if !given(user, "tls-min-version") {
		f.set("tls-cipher-suites", strings.Join(tlspolicy.CipherSuites(), ","))
	}
	f.set("client-ca-file", s.Files.ClientCA)
	f.set("kubelet-certificate-authority", s.Files.ServerCA)
	f.set("kubelet-client-certificate", s.Files.KubeletClientCert)
	f.set("kubelet-client-key", s.Files.KubeletClientKey)
	// Names would survive a change of address, but the proxy of nodes resolves them by DNS.
	f.set("kubelet-preferred-address-types", "InternalIP,ExternalIP,Hostname")
	f.set("requestheader-client-ca-file", s.Files.RequestHeaderCA)
	f.set("requestheader-allowed-names", wellknown.FrontProxyUser)
	f.set("requestheader-username-headers", "X-Remote-User")
	f.set("requestheader-group-headers", "X-Remote-Group")
	f.set("requestheader-extra-headers-prefix", "X-Remote-Extra-")
	f.set("proxy-client-cert-file", s.Files.ProxyClientCert)
	f.set("proxy-client-key-file", s.Files.ProxyClientKey)
	if !s.ClusterIPRouting {
		f.set("enable-aggregator-routing", "true")
	}

	f.set("service-account-issuer", issuer)
	f.set("service-account-signing-key-file", s.Files.ServiceAccountKey)
	f.set("service-account-key-file", s.Files.ServiceAccountPublicKey)

	if !given(user, "authorization-config") {
		f.set("authorization-mode", "Node,RBAC")
	}
	f.set("enable-admission-plugins", "NodeRestriction")
	f.set("encryption-provider-config", s.Files.Encryption)
	f.set("encryption-provider-config-automatic-reload", "true")
	if s.AuditLog != "" {
		f.set("audit-log-path", s.AuditLog)
		f.set("audit-policy-file", s.AuditPolicy)
		// As the CIS benchmark wants it: 100 MB, and ten more that are compressed to some 5 each, of thirty days.
		f.set("audit-log-maxsize", "100")
		f.set("audit-log-maxbackup", "10")
		f.set("audit-log-maxage", "30")
		f.set("audit-log-compress", "true")
	}

	// Counting the objects of every resource costs a query each. API priority and fairness takes a count
	// of more than five minutes ago for unknown and large.
	f.set("etcd-count-metric-poll-period", "4m")
	f.set("etcd-db-metric-poll-interval", "0s")
	f.set("profiling", "false")
	if !s.HighAvailability {
		// With one server no other needs its identity, which costs a write every 10 s.
		f.set("feature-gates", "APIServerIdentity=false,UnknownVersionInteroperabilityProxy=false")
	} else {
		// A server that stops answers late requests with Retry-After instead of closing their connections.
		f.set("shutdown-send-retry-after", "true")
	}
	return f
}

// never is longer than a process lives. Upstream's compactor follows the key of the compacted revision only where it
// has an interval at which it asks itself.
const never = 100 * 365 * 24 * time.Hour

// advertised returns upstream's advertise-address. Upstream requires one at its start and never changes it. A server
// that is alone publishes its address itself (soleServer), so while the machine has none this is the dummy address of
// RFC 7600, or one of the discard prefix of RFC 6666.
func (s Settings) advertised() string {
	if a := s.Advertise(); a != "" {
		return a
	}
	if len(s.ServiceCIDR) > 0 && s.ServiceCIDR[0].Addr().Is6() {
		return "100::1"
	}
	return "192.0.0.8"
}

// AddressChanged publishes the address of Advertise again, where this server is alone.
func (a *APIServer) AddressChanged() {
	if s := a.alone.Load(); s != nil {
		s.publish()
	}
}

// UseDatastore sets the endpoints of the durable store and of the one for Leases and Events, "" where the first holds
// them. With two endpoints the datastore is this server's alone and compacts itself. Otherwise the API servers request
// compaction, one of them every five minutes. It must be called before Run.
func (a *APIServer) UseDatastore(endpoint, volatile string) {
	if !given(a.settings.APIServerArgs, "etcd-servers") {
		a.opts.Etcd.StorageConfig.Transport.ServerList = strings.Split(endpoint, ",")
	}
	if volatile != "" && !given(a.settings.APIServerArgs, "etcd-compaction-interval") {
		a.opts.Etcd.StorageConfig.CompactionInterval = never
	}
	if volatile != "" && !given(a.settings.APIServerArgs, "etcd-servers-overrides") {
		a.opts.Etcd.EtcdServersOverrides = []string{
			"/events#" + volatile, "events.k8s.io/events#" + volatile, "coordination.k8s.io/leases#" + volatile,
		}
	}
}

// UseDatastoreTLS sets the files for connections to a datastore that is not a socket. It must be called before Run.
func (a *APIServer) UseDatastoreTLS(ca, cert, key string) {
	if t := &a.opts.Etcd.StorageConfig.Transport; ca != "" || cert != "" {
		t.TrustedCAFile, t.CertFile, t.KeyFile = ca, cert, key
	}
}

// Run serves until ctx ends. It calls ready as soon as requests are accepted and the roles of upstream's
// components are there: a component that is refused at its first request waits long before its second.
// The other hooks that /readyz waits for may still be at work; see WaitReady.
func (a *APIServer) Run(ctx context.Context, ready func()) error {
	// Upstream's servers wait for their hooks and for requests in flight when they stop.
	a.state.set("starting")
	defer a.state.set("stopped")
	if a.anonymous != "" {
		a.log.Warn(a.anonymous)
	}
	mark := stopwatch(a.log)
	name, err := cache.NewInformerName("kube-apiserver")
	if err != nil {
		return fmt.Errorf("name informers: %w", err)
	}
	defer name.Release()
	a.opts.InformerName = name
	// A rotation of keys waits three times for the file to be read; upstream looks at it once a minute.
	encryptionconfig.EncryptionConfigFileChangePollDuration = encryptionPoll
	completed, err := a.opts.Complete(ctx)
	if err != nil {
		return fmt.Errorf("complete options: %w", err)
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return fmt.Errorf("check options: %w", utilerrors.NewAggregate(errs))
	}
	if err := a.useAccountKeys(completed); err != nil {
		return err
	}
	mark("options")
	config, err := a.configure(completed)
	if err != nil {
		return err
	}
	mark("config")
	openapi := newLazyOpenAPI(config.KubeAPIs.ControlPlane.Generic, a.log)
	replaced := config.KubeAPIs.ControlPlane.Generic.DisabledPostStartHooks
	own, err := ownHooks(config.KubeAPIs.ControlPlane.VersionedInformers)
	if err != nil {
		return err
	}
	for name := range own {
		replaced.Insert(name)
	}
	cc, err := config.Complete()
	if err != nil {
		return fmt.Errorf("complete configuration: %w", err)
	}
	if port := a.settings.AdvertisePort; port != 0 {
		rec := &cc.KubeAPIs.Extra.EndpointReconcilerConfig.Reconciler
		*rec = advertisedPort{*rec, int32(port)}
	}
	server, err := app.CreateServerChain(cc)
	if err != nil {
		return fmt.Errorf("create servers: %w", err)
	}
	mark("chain")
	for name := range own {
		replaced.Delete(name) // the servers share this set: now ours may be added
	}
	if err := a.extend(server, own); err != nil {
		return err
	}
	apis, ok := server.GenericAPIServer.NextDelegate().(*genericapiserver.GenericAPIServer)
	if !ok {
		return errors.New("the server of the built-in APIs is not behind the aggregator")
	}
	openapi.install(apis)
	prepared, err := server.PrepareRun()
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	openapi.forget()
	mark("prepared")
	loopback := rest.CopyConfig(server.GenericAPIServer.LoopbackClientConfig)
	probe, cancel := context.WithCancel(ctx)
	defer cancel()
	go a.announce(probe, loopback, mark, ready)
	done := make(chan error, 1)
	go func() { done <- prepared.Run(ctx) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		err = a.end(ctx, done)
	}
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// configure returns upstream's configuration with umiak's own parts in it: the handlers before authentication, health
// for requests without credentials, and the endpoint of a server that is alone.
func (a *APIServer) configure(opts options.CompletedOptions) (*app.Config, error) {
	config, err := newConfig(opts, a.egress)
	if err != nil {
		return nil, fmt.Errorf("make configuration: %w", err)
	}
	outer := config.Aggregator.GenericConfig // of the outermost server
	if a.healthOnly {
		openHealth(&outer.Config)
	}
	chain := outer.BuildHandlerChainFunc
	outer.BuildHandlerChainFunc = func(h http.Handler, c *genericapiserver.Config) http.Handler {
		return a.behind(chain(a.guard.before(podview.For(wellknown.AgentsGroup, h)), c))
	}
	if a.sole() {
		sole, err := newSoleServer(config.KubeAPIs.ControlPlane.Generic.LoopbackClientConfig, a.settings.Advertise,
			a.log)
		if err != nil {
			return nil, fmt.Errorf("make endpoint reconciler: %w", err)
		}
		// The interval restores an endpoint that was deleted.
		config.KubeAPIs.Extra.EndpointReconcilerConfig = controlplane.EndpointReconcilerConfig{Reconciler: sole,
			Interval: time.Minute}
		a.alone.Store(sole)
	}
	return config, nil
}

// announce calls ready when the roles of upstream's components are there, and releases WaitReady when /readyz is ok.
func (a *APIServer) announce(ctx context.Context, loopback *rest.Config, mark func(step string), ready func()) {
	if a.probe(ctx, loopback, "/readyz/poststarthook/rbac/bootstrap-roles") != nil {
		return
	}
	mark("roles")
	ready()
	if a.probe(ctx, loopback, "/readyz") != nil {
		return
	}
	mark("ready")
	a.state.set("")
	close(a.ready)
}

// stopLimit bounds the stop of the API server while the datastore does not answer: upstream waits for its answers, for
// a minute and more.
const stopLimit = 2 * time.Second

// end waits for the API server to stop.
func (a *APIServer) end(ctx context.Context, done <-chan error) error {
	ctx = context.WithoutCancel(ctx)
	tick := time.NewTicker(stopLimit / 4)
	defer tick.Stop()
	for stalled := 0; ; {
		select {
		case err := <-done:
			return err
		case <-tick.C:
		}
		if a.Stalled == nil || !a.Stalled(ctx) {
			stalled = 0
			continue
		}
		if stalled++; stalled >= 3 {
			a.log.Info("the datastore does not answer, requests that wait for it are given up")
			return nil
		}
	}
}

// sole reports whether this is the only API server and the user has not chosen an endpoint reconciler.
func (a *APIServer) sole() bool {
	return !a.settings.HighAvailability && !given(a.settings.APIServerArgs, "endpoint-reconciler-type")
}

// extend adds what is umiak's to the server before it is started.
func (a *APIServer) extend(server *aggregatorapiserver.APIAggregator,
	own map[string]genericapiserver.PostStartHookFunc) error {
	g := server.GenericAPIServer
	// This bounds the end of open connections; watches end at once.
	g.ShutdownTimeout = 2 * time.Second
	g.Handler.NonGoRestfulMux.Handle(HealthPath, a.health)
	for name, f := range own {
		if err := g.AddPostStartHook(name, a.late.patient(name, f)); err != nil {
			return fmt.Errorf("add hook: %w", err)
		}
	}
	return nil
}

// probe asks for path until it is ok. The server has no way to be waited for: asking it is the thing itself.
func (a *APIServer) probe(ctx context.Context, c *rest.Config, path string) error {
	c = rest.CopyConfig(c)
	c.QPS = -1
	c.Timeout = 2 * time.Second
	hc, err := rest.HTTPClientFor(c)
	if err != nil {
		return err
	}
	defer hc.CloseIdleConnections()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Host+path, nil)
		if err != nil {
			return err
		}
		if resp, err := hc.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// Ready reports whether /readyz has been ok once.
func (a *APIServer) Ready() bool {
	select {
	case <-a.ready:
		return true
	default:
		return false
	}
}

// WaitReady blocks until /readyz has been ok once.
func (a *APIServer) WaitReady(ctx context.Context) error {
	select {
	case <-a.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for kube-apiserver: %w", context.Cause(ctx))
	}
}

// stopwatch logs how long each step of a start took, at debug.
func stopwatch(log *slog.Logger) func(step string) {
	last := time.Now()
	return func(step string) {
		now := time.Now()
		log.Debug("start", "step", step, "took", now.Sub(last).Round(time.Millisecond))
		last = now
	}
}
