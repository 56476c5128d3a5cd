package server

import (
	"log/slog"
	"slices"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/server/addons"
	"github.com/umiak-io/umiak/server/advertise"
	"github.com/umiak-io/umiak/server/backup"
	"github.com/umiak-io/umiak/server/cluster"
	"github.com/umiak-io/umiak/server/controlplane"
	"github.com/umiak-io/umiak/server/dnsendpoints"
	"github.com/umiak-io/umiak/server/encryption"
	"github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/ownnode"
	"github.com/umiak-io/umiak/server/pki"
	"github.com/umiak-io/umiak/server/servicelb"
	"github.com/umiak-io/umiak/server/storage"
	"github.com/umiak-io/umiak/server/tunnel"
	"github.com/umiak-io/umiak/server/upgrades"
)

// Server is one server of a cluster: the values that its parts are made of.
type Server struct {
	cfg          Config
	log          *slog.Logger
	pki          *pki.PKI
	address      *advertise.Address
	store        *storage.Current
	runner       *storage.Runner
	tunnels      *tunnel.Tunnels
	cluster      *cluster.Cluster
	secrets      *encryption.Rotation
	tokens       *joinapi.FirstTokens
	join         *joinapi.API
	health       *controlplane.Health
	plane        *controlplane.ControlPlane
	manifests    *addons.Part
	balancer     *servicelb.Controller
	dnsEndpoints *dnsendpoints.Controller
	upgrades     *upgrades.Controller
	snapshots    *backup.Keeper
	node         *ownnode.Node
}

// New makes sure that keys, certificates and kubeconfigs are there, and checks all settings. It starts nothing. The
// data directory must be locked by the caller.
func New(cfg Config, start Start, log *slog.Logger) (*Server, error) {
	return assemble(cfg, start, pki.Config{}, log)
}

// Parts returns everything that a server runs, in start order.
func (s *Server) Parts(node NodeHooks) []lifecycle.Part {
	s.plane.ControllerManager.VolumeControllersMade = node.VolumeControllersMade
	alone, lead := func(_ string, run lifecycle.Run) lifecycle.Run { return run }, "kube-apiserver"
	if s.cluster.Several() {
		alone, lead = s.cluster.Election.While, "election"
	}
	leading := func(name string, run lifecycle.Run) lifecycle.Part {
		return lifecycle.Part{Name: name, After: []string{lead}, Run: alone(name, run)}
	}
	part := func(name string, run lifecycle.Run, after ...string) lifecycle.Part {
		return lifecycle.Part{Name: name, After: after, Run: run}
	}
	parts := []lifecycle.Part{
		part("certificates", s.pki.Run),
		// A start needs nothing but its first look, and nothing else ends when it fails.
		lifecycle.Restart(part(nodeip.Part, s.address.Run), lifecycle.Policy{}),
		part("control", s.control().Run),
		part("datastore", s.runner.Run),
		part("node-tunnels", s.tunnels.Run),
		part("kube-apiserver", s.plane.APIServer.Run, "datastore", "certificates", "node-tunnels"),
	}
	if s.cluster.Several() {
		parts = append(parts, part("other-servers", s.cluster.Peers.Run, "kube-apiserver"),
			part("election", s.cluster.Elect, "kube-apiserver"))
	}
	parts = append(parts, leading("kube-controller-manager", s.plane.ControllerManager.Run))
	if s.plane.Scheduler != nil {
		parts = append(parts, leading("kube-scheduler", s.plane.Scheduler.Run))
	}
	afterSnapshots := []string{"datastore"}
	if s.cfg.Snapshots.S3.ConfigSecret != "" { // which the API server holds
		afterSnapshots = append(afterSnapshots, "kube-apiserver")
	}
	parts = append(parts,
		leading("load-balancer", s.balancer.Run),
		part("manifests", s.manifests.Run, "kube-apiserver"),
		leading("upgrades", s.upgrades.Run),
		leading("secrets-encryption", s.secrets.Run),
		part("snapshots", s.snapshots.Run, afterSnapshots...),
		part("tokens", s.tokens.Run, "kube-apiserver"),
		part("join-api", s.join.Run, "kube-apiserver"),
		leading("dns-endpoints", s.dnsEndpoints.Run))
	if !s.cfg.DisableAgent {
		parts = append(parts, part("node-name", s.node.Reserve, "kube-apiserver"),
			part("node-role", s.node.Mark, "kube-apiserver"))
	}
	if s.cluster.Several() {
		parts = append(parts,
			part("cluster-keys", s.cluster.Record.Run, "tokens", "join-api", "other-servers"),
			part("shared-keys", s.cluster.Keys.Run, "datastore"))
	}
	for i, p := range parts {
		if slices.Contains(restartable, p.Name) {
			parts[i] = lifecycle.Restart(p, lifecycle.Policy{Report: node.Report})
		}
	}
	return parts
}

// restartable are the parts of the control plane that can be started again alone: their failure is not the API's. A
// failure of any other ends the process, and so does one of the datastore unless its disk is full or it was open
// before.
var restartable = []string{"datastore", "kube-controller-manager", "load-balancer", "dns-endpoints", "manifests",
	"upgrades", "secrets-encryption", "snapshots", "tokens", "join-api", "node-name", "node-role"}
