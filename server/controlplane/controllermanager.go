package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-base/configz"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/options"

	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/lifecycle"
)

// ControllerManager is kube-controller-manager.
type ControllerManager struct {
	log   *slog.Logger
	opts  *options.KubeControllerManagerOptions
	api   *APIServer
	port  metricsPort
	state running
	// cluster are the ranges of pods.
	cluster []netip.Prefix
	idle    string // state while it does not run, which is as it should be where another server leads

	// VolumeControllersMade, if set, is called once in each Run, after the attach-detach and expand controllers
	// have been made: they take package variables of the CSI plugin, which a kubelet in the same process
	// has to take back. Set it before Run.
	VolumeControllersMade func()
}

func newControllerManager(s Settings, api *APIServer, health *Health, log *slog.Logger) (*ControllerManager, error) {
	opts, err := options.NewKubeControllerManagerOptions()
	if err != nil {
		return nil, fmt.Errorf("make options: %w", err)
	}
	opts.ControllerShutdownTimeout = 0 // Run limits it where the process ends
	m := &ControllerManager{log: log.With("component", "kube-controller-manager"), opts: opts, api: api,
		cluster: s.ClusterCIDR}
	if !s.HighAvailability {
		m.idle = "does not run"
	}
	m.state.set(m.idle)
	health.Register("kube-controller-manager", m.state.check)
	sets := opts.Flags(app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases())
	err = parse(sets, controllerManagerFlags(s), "kube-controller-manager-arg", s.ControllerManagerArgs,
		ownedByControllerManager)
	if !given(s.ControllerManagerArgs, metricFlags...) {
		opts.Metrics = nil
	}
	m.port = newMetricsPort(opts.SecureServing)
	return m, err
}

// controllerManagerFlags returns the flags that Umiak sets.
func controllerManagerFlags(s Settings) flags {
	var f flags
	f.set("kubeconfig", s.Files.ControllerManagerKubeconfig)
	f.setMetricsPort(s.ControllerManagerArgs, s.Files.ControllerManagerKubeconfig, s.Files)
	f.set("leader-elect", "false") // who runs it sees to that, see server/cluster/leader
	f.set("profiling", "false")
	f.set("use-service-account-credentials", "true")
	// Over loopback a limit only delays: at the default of 20 a second the first ServiceAccount is 8 s late.
	f.set("kube-api-qps", "300")
	f.set("kube-api-burst", "600")

	f.set("allocate-node-cidrs", "true")
	f.set("cluster-cidr", strings.Join(config.Texts(s.ClusterCIDR), ","))
	f.set("service-cluster-ip-range", strings.Join(config.Texts(s.ServiceCIDR), ","))
	f.set("root-ca-file", s.Files.ServerCA)
	f.set("service-account-private-key-file", s.Files.ServiceAccountKey)
	f.set("cluster-signing-kubelet-serving-cert-file", s.Files.ServerCASigner)
	f.set("cluster-signing-kubelet-serving-key-file", s.Files.ServerCAKey)
	for _, signer := range []string{"kubelet-client", "kube-apiserver-client", "legacy-unknown"} {
		f.set("cluster-signing-"+signer+"-cert-file", s.Files.ClientCASigner)
		f.set("cluster-signing-"+signer+"-key-file", s.Files.ClientCAKey)
	}
	f.set("cluster-signing-duration", "2160h")
	f.set("terminated-pod-gc-threshold", "1000") // 12500, upstream's default, is for other disks
	return f
}

func (m *ControllerManager) check() error {
	if err := m.opts.Validate(app.KnownControllers(), app.ControllersDisabledByDefault(),
		app.ControllerAliases()); err != nil {
		return fmt.Errorf("kube-controller-manager-arg: %w", err)
	}
	return nil
}

// shutdownTimeout bounds the end of the controllers when the process ends. None of them needs it.
const shutdownTimeout = 3 * time.Second

// Run runs the controllers until ctx ends. It may be called again when it has returned. Where ctx ends because another
// server may lead now, which is any other cause than context.Canceled, it returns only when all controllers have ended:
// until then this server must not lead again.
func (m *ControllerManager) Run(ctx context.Context, ready func()) error {
	for {
		again, err := m.run(ctx, ready)
		if !again || ctx.Err() != nil {
			return err
		}
	}
}

// run is Run until a Node with a foreign range is gone that was there at its start: then it is to be called again.
func (m *ControllerManager) run(ctx context.Context, ready func()) (again bool, err error) {
	m.state.set("starting")
	defer m.state.set(m.idle)
	defer configz.Delete(app.ConfigzName) // it would refuse to register again
	// It would give up after 10 s without a healthy API server, and look only once a second.
	if err := m.api.WaitReady(ctx); err != nil {
		return false, err
	}
	defer m.port.listen(ctx, m.opts.SecureServing, m.log)()
	c, err := m.opts.Config(ctx, app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases())
	if err != nil {
		return false, fmt.Errorf("make configuration: %w", err)
	}
	if m.VolumeControllersMade != nil {
		once := sync.OnceFunc(m.VolumeControllersMade)
		c.Kubeconfig.Wrap(func(rt http.RoundTripper) http.RoundTripper { return madeWatcher{rt, once} })
	}
	if err := tryToken(ctx, c.Client); err != nil {
		return false, err
	}
	foreign, why, err := foreignNode(ctx, c.Client, m.cluster)
	if err != nil {
		return false, err
	}
	// Controllers that were started before one that fails would go on without the others.
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	gone := make(chan struct{})
	if foreign != nil {
		c.ComponentConfig.Generic.Controllers = withoutAllocator(c.ComponentConfig.Generic.Controllers)
		m.blame(ctx, c.Client, foreign, why)
		go func() {
			if awaitGone(ctx, c.Client, foreign); ctx.Err() == nil {
				close(gone)
			}
		}()
	}
	m.state.set("")
	ready()
	done := make(chan error, 1)
	go func() { done <- app.Run(ctx, c.Complete()) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		err = m.end(ctx, done)
	case <-gone:
		m.log.Info("the Node with a foreign pod range is gone, the controllers start again and give ranges",
			"node", foreign.Name)
		stop()
		<-done //nolint:errcheck // told to end
		return true, nil
	}
	if err != nil && ctx.Err() == nil {
		// client-go has no sentinel for it.
		if strings.Contains(err.Error(), "informer name") && strings.Contains(err.Error(), "already registered") {
			return false, &lifecycle.ReexecError{Part: "kube-controller-manager",
				Err: fmt.Errorf("%w: %w", errOnceAProcess, err)}
		}
		return false, fmt.Errorf("run controllers: %w", err)
	}
	return false, nil
}

// tryToken requests a token of one of the controllers' ServiceAccounts, as upstream does for each of them. Upstream
// ends if a request fails, for instance because a webhook for all writes has no endpoints; tryToken is called first,
// and can be repeated.
func tryToken(ctx context.Context, client kubernetes.Interface) error {
	const account = "namespace-controller"
	accounts := client.CoreV1().ServiceAccounts(metav1.NamespaceSystem)
	if _, err := accounts.Get(ctx, account, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		_, err = accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}},
			metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("make ServiceAccount %s/%s, which the controllers need: %w", metav1.NamespaceSystem,
				account, err)
		}
	} else if err != nil {
		return fmt.Errorf("read ServiceAccount %s/%s, which the controllers need: %w", metav1.NamespaceSystem, account,
			err)
	}
	if _, err := accounts.CreateToken(ctx, account, &authenticationv1.TokenRequest{},
		metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("ask for a token of ServiceAccount %s/%s, which the controllers need: %w",
			metav1.NamespaceSystem, account, err)
	}
	return nil
}

// errOnceAProcess means that the controllers cannot be started again in this process, which has to execute itself
// again: an earlier start failed before upstream registers what releases the name of its informers.
var errOnceAProcess = errors.New("the controller manager cannot start twice in a process")

// end waits for the controllers to end.
func (m *ControllerManager) end(ctx context.Context, done <-chan error) error {
	if !errors.Is(context.Cause(ctx), context.Canceled) {
		m.state.set("the controllers of the last term are still ending")
		return <-done
	}
	limit := time.NewTimer(shutdownTimeout)
	defer limit.Stop()
	select {
	case err := <-done:
		return err
	case <-limit.C:
		return nil
	}
}

// madeWatcher detects that the volume controllers have been made. Upstream has no hook for it, but starts the informers
// of all controllers right after the last one has been made, and VolumeAttachments are read for these controllers
// alone: the event is the informer's first LIST or WATCH.
type madeWatcher struct {
	http.RoundTripper
	made func()
}

// WrappedRoundTripper lets client-go find the connection below.
func (w madeWatcher) WrappedRoundTripper() http.RoundTripper { return w.RoundTripper }

func (w madeWatcher) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet && r.URL.Path == "/apis/storage.k8s.io/v1/volumeattachments" {
		w.made()
	}
	return w.RoundTripper.RoundTrip(r)
}
