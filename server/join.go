package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/internal/wallclock"
	"github.com/umiak-io/umiak/server/cluster/sharedfiles"
	"github.com/umiak-io/umiak/server/controlplane"
	"github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/pki"
)

// Joiner gives the node on this machine its identity, from this server's own CAs. The server keeps the
// node's certificates fresh.
func (s *Server) Joiner() agent.Joiner {
	if !s.cluster.Several() {
		return localJoiner{s}
	}
	return oneOfMany{localJoiner{s}}
}

// oneOfMany is for a server that may have others beside it: its node keeps tunnels to them.
type oneOfMany struct{ localJoiner }

var _ agent.Servers = oneOfMany{}

// Servers are the others.
func (j oneOfMany) Servers() (list []string, changed <-chan struct{}) {
	return j.s.cluster.Peers.List()
}

// Authorities are those that this server keeps in the node's files.
func (j oneOfMany) Authorities(context.Context, string) (has string, since time.Time, err error) {
	return j.s.cluster.Authorities.Hash(), j.s.cluster.Authorities.Started(), nil
}

type localJoiner struct{ s *Server }

var (
	_ agent.Joiner  = localJoiner{}
	_ agent.Backend = localJoiner{}
	_ agent.Taints  = localJoiner{}
)

// FlannelBackend is the setting, for a node that has not joined yet.
func (j localJoiner) FlannelBackend() string { return j.s.cfg.FlannelBackend }

// Addresses are the node's, which its server has found already.
func (j localJoiner) Addresses() *nodeip.Tracker { return j.s.addrs }

func (j localJoiner) Join(ctx context.Context, node agent.Node) (*agent.Cluster, error) {
	s := j.s
	if err := s.issueNode(node); err != nil {
		return nil, fmt.Errorf("join node %s: %w", node.Name, err)
	}
	if err := s.plane.APIServer.WaitReady(ctx); err != nil {
		return nil, fmt.Errorf("join node %s: %w", node.Name, err)
	}
	select {
	case s.nodeName <- node.Name: // see reserveName
	default: // it has been told
	}
	c := s.clusterFacts()
	c.APIServer = s.loopbackURL()
	return &c, nil
}

// SetTaints gives the server's own Node the taints of its settings, see agent.Taints.
func (j localJoiner) SetTaints(ctx context.Context, node string, taints []corev1.Taint) error {
	tokens, _, err := j.s.tokens()
	if err != nil {
		return err
	}
	return tokens.SetTaints(ctx, node, taints)
}

// issueNode writes what agent/cluster.go says, and has it renewed.
func (s *Server) issueNode(node agent.Node) error {
	dir := s.dirs.AgentPKI()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	trusted := func(ca pki.CA) string { return filepath.Join(dir, string(ca)+".crt") }
	// Again with every leaf: a rotation changes both.
	trust := func() error {
		return errors.Join(pki.WriteIfChanged(trusted(pki.ServerCA), s.pki.CAPEM(pki.ServerCA), 0o644),
			pki.WriteIfChanged(trusted(pki.ClientCA), s.pki.CAPEM(pki.ClientCA), 0o644))
	}
	kubeconfig := func(l pki.Leaf, file string) func() error {
		k := s.kubeconfig(l)
		k.CAFile = trusted(pki.ServerCA)
		return func() error { return errors.Join(trust(), k.Write(file, 0o600)) }
	}
	leaf := func(name, user string, groups ...string) pki.Leaf {
		return pki.Leaf{
			Name: "node " + node.Name + " " + name, CA: pki.ClientCA,
			CertFile: filepath.Join(dir, name+".crt"), KeyFile: filepath.Join(dir, name+".key"),
			CommonName: user, Organization: groups, Steady: true,
		}
	}
	kubelet := leaf("kubelet-client", "system:node:"+node.Name, "system:nodes")
	kubelet.Renewed = kubeconfig(kubelet, s.dirs.KubeletKubeconfig())
	own := leaf("agent-client", controlplane.AgentUserPrefix+node.Name, controlplane.AgentsGroup)
	own.Renewed = kubeconfig(own, s.dirs.AgentKubeconfig())
	serving := leaf("kubelet-serving", "system:node:"+node.Name, "system:nodes")
	serving.CA, serving.Server, serving.Steady = pki.ServerCA, true, false
	serving.DNSNames, serving.IPs = []string{node.Name}, slices.Concat([]string{"127.0.0.1"}, node.IPs, node.ExternalIPs)
	for _, l := range []pki.Leaf{kubelet, own, serving} {
		if err := s.pki.Add(l); err != nil {
			return err
		}
	}
	return nil
}

// clusterFacts is what every node is told.
func (s *Server) clusterFacts() joinwire.Cluster {
	c := s.cfg
	return joinwire.Cluster{
		ClusterCIDR: c.ClusterCIDR, ServiceCIDR: c.ServiceCIDR,
		ClusterDNS: c.DNS(), ClusterDomain: c.ClusterDomain,
		FlannelBackend: c.FlannelBackend, NodePorts: c.NodePorts.String(),
		UpgradesOff: s.upgradesOff(), ExternalIPs: c.ExternalIPs,
	}
}

// newJoinAPI is what other machines join through.
func (s *Server) newJoinAPI() (*joinapi.API, error) {
	l := s.servingLeaf()
	name := s.cfg.NodeName
	ca, former, err := s.caHash()
	if err != nil {
		return nil, err
	}
	for _, t := range s.longLived() {
		if t.Given == "" || t.Joined {
			continue
		}
		_, err := t.Check(t.ID+" token", append(former, ca)...)
		if _, missing := os.Stat(t.File); err != nil && (!errors.Is(err, joinapi.ErrOtherCA) || missing != nil) {
			return nil, err // where there is a file the CA was replaced, and runJoinAPI says what is set in vain
		}
	}
	self := ""
	if !s.cfg.DisableAgent {
		self = name
	}
	return joinapi.New(joinapi.Config{
		Self: self, Signer: s.pki, Cluster: s.clusterFacts(), Servers: s.cluster.Admission, Own: s.published,
		Names: append(l.DNSNames, name), IPs: func() []string { return s.servingLeaf().IPs }, TokensChanged: s.tokensWake.Set, Etcd: etcd.Version(), Log: s.log,
	}), nil
}

// published is this server's address as HOST:PORT, as other machines use it; empty while it has none.
func (s *Server) published() string {
	a := s.advertise()
	if a == "" {
		return ""
	}
	return net.JoinHostPort(a, s.cfg.HTTPSPort.String())
}

// longLived are the two tokens of the first start.
func (s *Server) longLived() []joinapi.LongLived {
	// Validate has read the files.
	srv, _ := token.FromSettings(s.cfg.Token, s.cfg.TokenFile)
	if s.cfg.Server != "" {
		srv = "" // it is the one with which this server joins
	}
	agt, _ := token.FromSettings(s.cfg.AgentToken, s.cfg.AgentTokenFile)
	return []joinapi.LongLived{
		{ID: joinapi.ServerID, Kind: token.Server, File: s.dirs.ServerToken(), Given: srv, Joined: sharedfiles.Joined(s.dirs), Server: s.cfg.NodeName},
		{ID: joinapi.AgentID, Kind: token.Agent, File: s.dirs.AgentToken(), Given: agt, Server: s.cfg.NodeName},
	}
}

func (s *Server) caHash() (current string, former []string, err error) {
	return joinapi.CAHash(s.pki.CAPEM(pki.ServerCA))
}

// tokens are the cluster's, through the API server of this process.
func (s *Server) tokens() (joinapi.Tokens, *rest.Config, error) {
	rc, err := s.clients.Config("umiak-join")
	if err != nil {
		return joinapi.Tokens{}, nil, err
	}
	rc.QPS = -1 // it is let in by turns, and talks to its own process
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return joinapi.Tokens{}, nil, fmt.Errorf("make client: %w", err)
	}
	ca, former, err := s.caHash()
	return joinapi.Tokens{Client: client, CA: ca, Former: former, Secret: s.cluster.Secret}, rc, err
}

// ensureTokens makes the tokens of the first start, and their files what the cluster has. It returns when one of them has to be
// renewed, zero for never.
func (s *Server) ensureTokens(ctx context.Context) (due time.Time, err error) {
	tokens, _, err := s.tokens()
	if err != nil {
		return due, err
	}
	notes := map[string]string{}
	for _, t := range s.longLived() {
		err := soon(ctx, func() error {
			note, err := tokens.Ensure(ctx, t, s.log.With("component", "join"))
			if note != "" {
				notes[t.ID] = note
			}
			if err == nil && t.ID == joinapi.AgentID {
				due, err = tokens.Renew(ctx, t, s.log.With("component", "join"))
			}
			return err
		})
		if err != nil {
			return due, err
		}
	}
	old := s.tokenNotes.Swap(&notes)
	for id, note := range notes {
		if old == nil || (*old)[id] != note {
			s.log.Warn("a token of the first start needs a look", "component", "join", "token", id, "why", note)
		}
	}
	s.cluster.Record.Changed() // what is sealed with the server token
	return due, nil
}

// runTokens keeps the tokens of the first start and their files what they should be. Nothing waits for it: where a write
// is refused, machines join with the tokens that there are.
func (s *Server) runTokens(ctx context.Context, ready func()) error {
	alarm, err := wallclock.NewAlarm()
	if err != nil {
		return err
	}
	defer alarm.Close()
	for {
		due, err := s.ensureTokens(ctx)
		if err != nil {
			return err
		}
		ready()
		if !due.IsZero() {
			if err := alarm.Set(max(time.Until(due), time.Minute)); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.tokensWake:
		case _, ok := <-alarm.Rung():
			if !ok {
				return alarm.Err()
			}
		}
	}
}

// runJoinAPI lets machines join.
func (s *Server) runJoinAPI(ctx context.Context, ready func()) error {
	if err := s.plane.APIServer.WaitReady(ctx); err != nil {
		return err
	}
	tokens, rc, err := s.tokens()
	if err != nil {
		return err
	}
	s.join.Know(tokens.Client)
	if err := soon(ctx, func() error { return tokens.PublishNames(ctx, s.cfg.NodeName, s.servingLeaf().DNSNames, s.tlsSANs()) }); err != nil {
		s.log.Warn("other servers do not know the names and addresses of this one (tls-san), and may give them to a node", "component", "join", "error", err)
	}
	meta, err := metadata.NewForConfig(rc)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	return s.join.Run(ctx, tokens.Client, meta, tokens, ready)
}

// reserveName keeps the name of the server's own node from others, who might join with a token. The node does not wait
// for it.
func (s *Server) reserveName(ctx context.Context, ready func()) error {
	var node string
	select {
	case node = <-s.nodeName:
		select {
		case s.nodeName <- node: // for another run
		default: // the node has named itself again meanwhile
		}
	case <-ctx.Done():
		return nil
	}
	password, err := token.SecretFile(s.dirs.NodePassword())
	if err != nil {
		return err
	}
	tokens, _, err := s.tokens()
	if err != nil {
		return err
	}
	var taken bool
	err = soon(ctx, func() (err error) {
		taken, err = tokens.Reserve(ctx, node, password, s.ownAddresses())
		return err
	})
	if err != nil {
		return err
	}
	if taken {
		s.log.Warn("this server's node name was kept for another machine, and is this server's now; if that machine runs, give it another node-name", "node", node)
	}
	ready()
	<-ctx.Done()
	return nil
}

// soon repeats for a few seconds what the API server may refuse at the first start: it makes kube-system at about the
// same time. What it refuses for longer is the part's failure, which is started again.
func soon(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	pause := 50 * time.Millisecond
	for {
		err := f()
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
			pause = min(2*pause, time.Second)
		}
	}
}

// ownAddresses are those of the node on this machine.
func (s *Server) ownAddresses() []netip.Addr {
	now, _ := s.addrs.Now()
	return now.IPs
}
