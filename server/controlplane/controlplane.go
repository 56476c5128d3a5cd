package controlplane

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/component-base/featuregate"

	"k8s.io/client-go/rest"

	apicompatibility "k8s.io/apiserver/pkg/util/compatibility"

	"github.com/umiak-io/umiak/server/admission"
)

// Settings describe the three components. Paths are absolute.
type Settings struct {
	Bind string // address to listen on
	Port int
	// AdvertisePort is the port in the endpoints of the Service kubernetes; 0 means Port.
	AdvertisePort int
	// Advertise is the address at which pods reach the API server, empty while the machine has none. Where others are
	// to reach this server as well, there is one from the start.
	Advertise func() string

	ClusterCIDR, ServiceCIDR []netip.Prefix
	NodePorts, ClusterDomain string
	// OtherIPAM is set where another network than umiak's gives Pods their addresses.
	OtherIPAM bool

	// HighAvailability turns on the API server's leases, for more than one server.
	HighAvailability bool
	// ClusterIPRouting lets the API server reach Services at their ClusterIPs. It is false where this machine's own
	// proxy does not serve them: the API server takes an endpoint then.
	ClusterIPRouting bool

	// Nodes knows the nodes that have joined.
	Nodes Nodes

	// NoScheduler leaves kube-scheduler out.
	NoScheduler bool

	// UpgradesOff refuses all requests for upgrades of nodes.
	UpgradesOff bool

	// Services are the limits of addresses and ports of Services.
	Services admission.Limits

	Files Files

	AuditLog, AuditPolicy string

	APIServerArgs, ControllerManagerArgs, SchedulerArgs []string
}

// Files are the paths of the files that the components read.
type Files struct {
	// The trusted authorities: during a rotation a file of these holds two certificates.
	ServerCA, ClientCA, RequestHeaderCA string
	// The authorities that sign CSRs, one certificate a file.
	ServerCASigner, ServerCAKey string
	ClientCASigner, ClientCAKey string

	ServiceAccountKey       string
	ServiceAccountPublicKey string

	ServingCert, ServingKey             string // the API server's
	KubeletClientCert, KubeletClientKey string // the API server towards kubelets
	ProxyClientCert, ProxyClientKey     string // the API server towards aggregated ones

	Encryption string // EncryptionConfiguration

	ControllerManagerKubeconfig, SchedulerKubeconfig string
}

// ControlPlane holds the three components, ready to be run.
type ControlPlane struct {
	APIServer         *APIServer
	ControllerManager *ControllerManager
	Scheduler         *Scheduler // nil with Settings.NoScheduler
}

// New builds the components' options. Nothing is started; it sets the process's feature gates.
func New(s Settings, health *Health, log *slog.Logger) (*ControlPlane, error) {
	api, errA := newAPIServer(s, health, log)
	kcm, errK := newControllerManager(s, api, health, log)
	var sched *Scheduler
	var errS error
	if !s.NoScheduler {
		sched, errS = newScheduler(s, health, log)
	}
	if err := errors.Join(errA, errK, errS); err != nil {
		return nil, err
	}
	// The three share one registry of feature gates, which collected the values of all three flag sets.
	registry := apicompatibility.DefaultComponentGlobalsRegistry
	if err := registry.Set(); err != nil {
		return nil, fmt.Errorf("set feature gates: %w", err)
	}
	if fg, ok := registry.FeatureGateFor(basecompatibility.DefaultKubeComponent).(featuregate.MutableFeatureGate); ok {
		fg.AddMetrics()
	}
	registry.AddMetrics()
	silenceEtcdClients()
	// As the components' commands do: they know which deprecated APIs they watch.
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	if err := errors.Join(api.complete(), kcm.check()); err != nil {
		return nil, err
	}
	return &ControlPlane{APIServer: api, ControllerManager: kcm, Scheduler: sched}, nil
}
