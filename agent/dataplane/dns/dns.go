package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/caddy"
	api "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/umiak-io/umiak/agent/dataplane/dns/corefile"
	"github.com/umiak-io/umiak/internal/status"
)

// Where the configuration is, as with any CoreDNS in a cluster.
const (
	Namespace       = "kube-system"
	ConfigMap       = "coredns"
	CustomConfigMap = "coredns-custom"
)

// Config describes the DNS of one node.
type Config struct {
	NodeName      string       // for events; may be empty
	ClusterDomain string       // as cluster.local
	ClusterDNS    []netip.Addr // addresses of the DNS Service, one a family
	// PodInterface is the one by which this node's pods send; empty where the user brings the network: then all are
	// answered but who comes in by an interface with one of NodeIPs.
	PodInterface string
	NodeIPs      []netip.Addr
	// Endpoints makes the server answer this node's pods and host at NodeIPs, port wellknown.DNSEndpointPort, as well:
	// there another proxy sends what is for the DNS Service.
	Endpoints  bool
	ResolvConf string // the host's resolvers: a file that does not point back here
	StateFile  string // where the last good configuration is kept for a boot without a server
	Client     kubernetes.Interface
	// Informers must not be narrowed by labels: headless Services and their slices are asked for too.
	Informers informers.SharedInformerFactory
	Events    record.EventRecorder // nil: one to the API server
	// Tables writes the table umiak-dns and restores it.
	Tables Tables
	Log    *slog.Logger
}

// Server is the node's DNS server.
type Server struct {
	cfg     Config
	log     *slog.Logger
	handle  string
	bind    []netip.Addr
	cluster *cluster
	events  record.EventRecorder
	wake    chan struct{}
	stop    <-chan struct{} // of Run

	prepared  atomic.Bool // addresses and routes were set up
	unlimited atomic.Bool // the kernel cannot limit clients

	port uint16 // that CoreDNS listens on, see freePort

	mu       sync.Mutex
	files    map[string]map[string]string // ConfigMap name -> data; what to load
	objects  map[string]*api.ConfigMap    // name -> what events are about
	looped   string                       // the text under which a loop was found
	launched launched
	current  state
}

// state is the state that Status reports.
type state struct {
	origin    string // where the running Corefile is from
	text      string
	source    source
	upstreams []string
	forwards  bool
	loop      bool
	notes     []string
	err       error    // why the newest configuration is not the running one
	left      []string // parts of it that are left out because they cannot be used
	since     time.Time
}

// New checks the configuration and registers what the server needs of the shared informers; their
// factory may be started before or after.
func New(cfg Config) (*Server, error) {
	if len(cfg.ClusterDNS) == 0 {
		return nil, errors.New("set up DNS: no cluster DNS address")
	}
	for i, a := range cfg.ClusterDNS {
		if !a.IsValid() || a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() {
			return nil, fmt.Errorf("set up DNS: %q cannot be the cluster DNS address", a)
		}
		cfg.ClusterDNS[i] = a.Unmap()
	}
	if err := register(); err != nil {
		return nil, err
	}
	cl, err := newCluster(cfg.Informers)
	if err != nil {
		return nil, fmt.Errorf("set up DNS: use shared informers: %w", err)
	}
	s := &Server{
		cfg: cfg, log: cfg.Log.With("component", "dns"), cluster: cl,
		handle: "@" + strconv.FormatInt(lastID.Add(1), 10),
		bind:   listenAddrs(cfg.ClusterDNS),
		wake:   make(chan struct{}, 1), objects: map[string]*api.ConfigMap{},
	}
	return s, nil
}

// Run serves until ctx ends. It is ready once queries are answered, with or without the API server: names
// of the cluster get SERVFAIL until the cluster is known, others are resolved at once. What it has put on
// the node stays when it returns, so that a restart leaves no gap; Cleanup removes it.
func (s *Server) Run(ctx context.Context, ready func()) error {
	s.stop = ctx.Done()
	logSink.Store(s.log)
	servers.Store(s.handle, s)
	defer servers.Delete(s.handle)
	if err := s.prepare(ctx); err != nil {
		return fmt.Errorf("prepare the node for DNS: %w", err)
	}
	s.startInformers()
	if s.events = s.cfg.Events; s.events == nil {
		b := record.NewBroadcaster(record.WithContext(ctx))
		b.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: s.cfg.Client.CoreV1().Events("")})
		defer b.Shutdown()
		s.events = b.NewRecorder(scheme.Scheme, api.EventSource{Component: "umiak-dns", Host: s.cfg.NodeName})
	}

	inst, err := s.start()
	if err != nil {
		return err
	}
	defer func() {
		errs := inst.ShutdownCallbacks()
		if err := errors.Join(append(errs, inst.Stop())...); err != nil {
			s.log.Warn("stopping", "error", err)
		}
	}()
	ready()

	var wg sync.WaitGroup
	defer wg.Wait()
	for _, name := range []string{ConfigMap, CustomConfigMap} {
		wg.Go(func() { s.watchConfigMap(ctx, name) })
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
			inst = s.reload(inst)
		}
	}
}

// RestoreAddresses restores addresses and routes, if they were set up before. The table is restored by Config.Tables.
func (s *Server) RestoreAddresses() error {
	if !s.prepared.Load() {
		return nil
	}
	return setupAddresses(s.cfg.ClusterDNS)
}

// ResolversChanged reloads the file of the host's resolvers. Before Run it does nothing: Run reads the file.
func (s *Server) ResolversChanged() {
	if s.prepared.Load() {
		s.poke()
	}
}

// prepare chooses the port and sets up addresses, routes and table.
func (s *Server) prepare(ctx context.Context) error {
	if err := setupAddresses(s.cfg.ClusterDNS); err != nil {
		return err
	}
	var err error
	s.prepared.Store(false) // RestoreAddresses does nothing meanwhile
	if s.port, err = freePort(s.bind); err != nil {
		return errors.Join(err, s.cfg.Tables.Remove(ctx, Table)) // it would lead to the program that has the port now
	}
	if err := s.applyTable(ctx); err != nil {
		return err
	}
	// What the kernel remembers of an earlier run may lead to another port.
	forgetFlows(s.bind, s.port)
	s.prepared.Store(true)
	return nil
}

// applyTable writes the table.
func (s *Server) applyTable(ctx context.Context) error {
	l := layout{addrs: s.cfg.ClusterDNS, port: s.port, podInterface: s.cfg.PodInterface, nodeIPs: s.cfg.NodeIPs,
		endpoints: s.cfg.Endpoints, limits: defaultLimits}
	limited, err := l.apply(ctx, s.cfg.Tables)
	if was := s.unlimited.Swap(err == nil && !limited); !was && s.unlimited.Load() {
		s.log.Warn("one client of this node's DNS can take all of it: the kernel has no nft_connlimit or nft_limit")
	}
	return err
}

func (s *Server) startInformers() {
	if s.stop != nil {
		s.cfg.Informers.Start(s.stop)
	}
}

func (s *Server) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// start brings up the first instance: the last good configuration, or the one every cluster begins with.
func (s *Server) start() (*caddy.Instance, error) {
	var errs []error
	if src, err := loadState(s.cfg.StateFile); err != nil {
		errs = append(errs, err)
	} else if src != nil {
		s.mu.Lock()
		s.files = src.Files
		s.mu.Unlock()
		inst, err := s.launch(nil, *src, "kept from before")
		if err == nil {
			return inst, nil
		}
		errs = append(errs, err)
	}
	inst, err := s.launch(nil, s.builtin(), "built in")
	if err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	if len(errs) > 0 {
		s.log.Warn("the kept DNS configuration cannot be used, the built-in one is", "error", errors.Join(errs...))
	}
	return inst, nil
}

func (s *Server) builtin() source {
	return source{Files: map[string]map[string]string{ConfigMap: {"Corefile": DefaultCorefile(s.cfg.ClusterDomain)}}}
}

// reload goes over to the newest configuration, or stays with the running one and says why.
func (s *Server) reload(inst *caddy.Instance) *caddy.Instance {
	s.mu.Lock()
	src := source{Files: cloneFiles(s.files)}
	object := s.objects[ConfigMap]
	origin := "ConfigMap " + Namespace + "/" + ConfigMap
	if object == nil {
		origin = s.current.origin
	}
	s.mu.Unlock()
	if len(src.Files[ConfigMap]) == 0 {
		// Deleted, or never there: the cluster must not lose DNS with it.
		custom := src.Files[CustomConfigMap]
		src, origin = s.builtin(), "built in"
		src.Files[CustomConfigMap] = custom
	}
	next, err := s.launch(inst, src, origin)
	if err != nil {
		s.mu.Lock()
		known := s.current.err != nil && s.current.err.Error() == err.Error()
		s.current.err = err
		s.mu.Unlock()
		if !known {
			s.log.Warn("the new DNS configuration cannot be used, the old one goes on", "error", err)
			if object != nil {
				s.events.Eventf(object, api.EventTypeWarning, "InvalidCorefile", "the old configuration goes on: %v",
					err)
			}
		}
		return inst
	}
	if object != nil && s.cfg.StateFile != "" {
		if err := saveState(s.cfg.StateFile, src); err != nil {
			s.log.Warn("keeping the DNS configuration", "error", err)
		}
	}
	return next
}

// launch starts or replaces the instance. With inst it returns inst itself when nothing changes.
func (s *Server) launch(inst *caddy.Instance, src source, origin string) (*caddy.Instance, error) {
	upstreams, err := readResolvConf(s.cfg.ResolvConf)
	if err != nil {
		s.log.Warn("the host's resolvers are unknown, only names of the cluster are answered", "error", err)
	}
	res, left, err := s.compile(src, upstreams)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	loop := s.looped != "" && s.looped == res.Text
	if !loop {
		s.looped = ""
	}
	cur := s.current
	s.mu.Unlock()
	wanted := res.Text
	if loop { // the very text under which queries came back: the same, but without forwarding
		if res, err = corefile.DropForward(res.Text); err != nil {
			return nil, err
		}
	}
	if inst == nil || res.Text != cur.text {
		input := caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(res.Text), ServerTypeName: "dns"}
		begun := time.Now()
		s.setLaunched(launched{wanted, upstreams}) // its probe may come back before it is the current one
		if inst, err = startOrReplace(inst, input); err != nil {
			s.setLaunched(launched{cur.source.wanted, cur.upstreams})
			return nil, err
		}
		s.awaitAnswers()
		s.log.Info("serving", "configuration", origin, "addresses", s.cfg.ClusterDNS,
			"upstreams", upstreams, "took", time.Since(begun).Round(time.Microsecond))
		for _, n := range res.Notes {
			s.log.Info("part of the Corefile has no effect", "reason", n)
		}
	}
	s.reportLeft(cur.left, left)
	s.mu.Lock()
	defer s.mu.Unlock()
	cur.text, cur.source, cur.origin, cur.upstreams, cur.forwards, cur.notes, cur.loop, cur.err = res.Text, src, origin, upstreams, res.Forwards, res.Notes, loop, nil
	cur.since, cur.left = time.Now(), left
	s.current = cur
	s.current.source.wanted = wanted
	return inst, nil
}

// launched describes the configuration of the instance that runs or is being started.
type launched struct {
	wanted    string // before forwarding was dropped
	upstreams []string
}

func (s *Server) setLaunched(l launched) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.launched = l
}

// startOrReplace turns panics of plugins' setup functions into errors.
func startOrReplace(inst *caddy.Instance, in caddy.Input) (next *caddy.Instance, err error) {
	defer func() {
		if r := recover(); r != nil {
			next, err = nil, fmt.Errorf("start DNS: panic: %v", r)
		}
	}()
	if inst == nil {
		if next, err = caddy.Start(in); err != nil {
			return nil, fmt.Errorf("start DNS: %w", err)
		}
		return next, nil
	}
	next, err = inst.Restart(in)
	if err == nil && next == nil {
		err = errors.New("a plugin panicked") // Restart recovers and returns nothing
	}
	if err != nil {
		return nil, fmt.Errorf("replace DNS: %w", err)
	}
	return next, nil
}

// foundLoop is called when a query of ours came back by way of a resolver.
func (s *Server) foundLoop() {
	s.mu.Lock()
	s.looped = s.launched.wanted
	object, up := s.objects[ConfigMap], s.launched.upstreams
	s.mu.Unlock()
	s.log.Error("a name server of the host forwards back to the cluster's DNS: forwarding is off until resolv.conf or the Corefile changes", "upstreams", up, "resolv.conf", s.cfg.ResolvConf)
	if object != nil {
		s.events.Eventf(object, api.EventTypeWarning, "ForwardingLoop",
			"a name server of %v forwards back to the cluster's DNS; forwarding is off on this node", up)
	}
	s.poke()
}

// watchConfigMap follows one ConfigMap and nothing else of its namespace.
func (s *Server) watchConfigMap(ctx context.Context, name string) {
	only := fields.OneTermEqualSelector(meta.ObjectNameField, name).String()
	maps := s.cfg.Client.CoreV1().ConfigMaps(Namespace)
	set := func(cm *api.ConfigMap) {
		if cm != nil && cm.Name != name {
			return // a server that does not filter
		}
		s.mu.Lock()
		s.files = cloneFiles(s.files)
		delete(s.files, name)
		if cm != nil {
			s.files[name] = cm.Data
		}
		delete(s.objects, name)
		if cm != nil {
			s.objects[name] = &api.ConfigMap{TypeMeta: meta.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
				ObjectMeta: meta.ObjectMeta{Name: cm.Name, Namespace: cm.Namespace, UID: cm.UID,
					ResourceVersion: cm.ResourceVersion}}
		}
		s.mu.Unlock()
		s.poke()
	}
	store, c := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o meta.ListOptions) (runtime.Object, error) {
				o.FieldSelector = only
				return maps.List(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o meta.ListOptions) (watch.Interface, error) {
				o.FieldSelector = only
				return maps.Watch(ctx, o)
			},
		}, s.cfg.Client),
		ObjectType: &api.ConfigMap{},
		Transform: func(obj any) (any, error) {
			if cm, ok := obj.(*api.ConfigMap); ok {
				cm.ManagedFields = nil
			}
			return obj, nil
		},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { set(obj.(*api.ConfigMap)) },
			UpdateFunc: func(_, obj any) { set(obj.(*api.ConfigMap)) },
			DeleteFunc: func(any) { set(nil) },
		},
	})
	go func() {
		select {
		case <-c.HasSyncedChecker().Done():
			// Deleted while we were not looking: what was kept from before must go, too.
			if _, there, err := store.GetByKey(Namespace + "/" + name); !there && err == nil {
				set(nil)
			}
		case <-ctx.Done():
		}
	}()
	c.RunWithContext(ctx)
}

// SectionName is the title of the node's DNS in `umiak status`.
const SectionName = "DNS"

var _ status.Reporter = (*Server)(nil)

// Section reports which configuration serves, and what is wrong with it.
func (s *Server) Section(context.Context) status.Section {
	s.mu.Lock()
	cur := s.current
	s.mu.Unlock()
	sec := status.Section{Name: SectionName}
	row := func(name, state, detail string) {
		sec.Rows = append(sec.Rows, status.Row{Name: name, State: state, Detail: detail})
	}
	if cur.text == "" {
		row("server", "starting", "")
		return sec
	}
	if s.cluster.Synced() {
		row("server", "serving", fmt.Sprint(s.cfg.ClusterDNS))
		if s.unlimited.Load() {
			row("limits", "off", "the kernel has no nft_connlimit or nft_limit: one client can take all of this node's DNS")
		}
	} else {
		row("server", "partly", "names of the cluster are not known yet: waiting for the API server")
	}
	if cur.err != nil {
		row("corefile", "invalid", fmt.Sprintf("%v; running: %s", cur.err, cur.origin))
	} else {
		row("corefile", "loaded", strings.Join(append([]string{cur.origin}, cur.notes...), "; "))
	}
	for _, l := range cur.left {
		row(CustomConfigMap, "left out", l)
	}
	switch {
	case cur.loop:
		row("forward", "off", "a name server forwards back to this one: "+strings.Join(cur.upstreams, ", "))
	case !cur.forwards:
		row("forward", "off", "no name server for names outside the cluster")
	default:
		row("forward", "on", strings.Join(cur.upstreams, ", "))
	}
	return sec
}
