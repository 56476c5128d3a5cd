package joinapi

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/internal/apiservers"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/nodecerts"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/server/pki"
)

// join admits a node with a token.
func (a *API) join(ctx context.Context, s *serving, r *http.Request, w http.ResponseWriter) (any, error) {
	rec, err := a.tokenOf(s, r, w) // either kind lets a node in
	if err != nil {
		return nil, err
	}
	if err := version.NodeFits(r.Header.Get(joinwire.VersionHeader), a.cfg.Version); err != nil {
		return nil, joinwire.Refuse(joinwire.BadVersion, "%v", err)
	}
	var req joinwire.NodeRequest
	release, err := a.enter(ctx, r, w, &req)
	if err != nil {
		return nil, err
	}
	defer release()
	n, err := a.check(ctx, s, &req, slices.Concat(a.cfg.names(), s.known.serverNames("")))
	if err != nil {
		return nil, err
	}
	n.from = remote(r)
	if err := a.yield(ctx, s, n.name, req.Password); err != nil {
		return nil, err
	}
	if err := a.contested(ctx, s, n); err != nil {
		return nil, err
	}
	if err := a.admit(ctx, s, rec, n.name, req.Password, token.Agent, n.fill); err != nil {
		return nil, err
	}
	if err := a.register(ctx, s, n); err != nil {
		return nil, err
	}
	resp, err := a.answer(ctx, s, n)
	if err == nil {
		a.cfg.Log.Info("a node has joined", "node", n.name, "token", rec.ID, "from", remote(r))
	}
	return resp, err
}

// yield frees a name that another machine has claimed and never used: the join was broken off, and neither a Node nor a
// member of the cluster has come of it.
func (a *API) yield(ctx context.Context, s *serving, name, password string) error {
	old := s.known.node(name)
	if old == nil || owns(old, password) {
		return nil
	}
	if since := old.CreationTimestamp; since.IsZero() || a.cfg.Now().Sub(since.Time) < unusedAge ||
		a.cfg.Servers.Holds(name) {
		return taken(name)
	}
	// Only what a server has claimed without becoming a member: an agent's claim has got certificates, which stay
	// valid, and a join that was broken off still has its password. Of a database's servers only their nodes are
	// known.
	if string(old.Data[keyKind]) != string(token.Server) || a.cfg.Servers.Datastore() != joinwire.Etcd {
		return taken(name)
	}
	if _, err := s.tokens.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{}); err == nil {
		return taken(name)
	} else if !apierrors.IsNotFound(err) {
		return fmt.Errorf("read node %s: %w", name, err)
	}
	err := s.tokens.secrets().Delete(ctx, old.Name,
		metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &old.UID}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("free the name of node %s: %w", name, err)
	}
	a.cfg.Log.Info("a machine that claimed a name never came, the name is free", "node", name)
	return nil
}

// unusedAge is the age from which a claim whose machine has not come does not protect the name.
const unusedAge = 5 * time.Minute

// admit gives a node its name, for one of the token's uses, if it has limited ones. A machine that did not
// get the answer may ask again with the token that let it in. fill, which may be nil, adds to the Secret that is made.
func (a *API) admit(ctx context.Context, s *serving, rec Record, name, password string, kind token.Kind,
	fill func(*corev1.Secret) error) error {
	old := s.known.node(name)
	if old != nil && !owns(old, password) { // yield may have freed it, of which the watch has not heard
		var err error
		if old, err = s.tokens.secrets().Get(ctx, name+nodeSuffix, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			old = nil
		} else if err != nil {
			return fmt.Errorf("read the password of node %s: %w", name, err)
		}
	}
	if old == nil {
		if err := a.mayClaim(ctx, s, rec.ID); err != nil {
			return err
		}
		err := s.tokens.use(ctx, rec.ID)
		if err == nil {
			err = s.tokens.claim(ctx, name, password, rec.ID, kind, fill)
		}
		switch {
		case errors.Is(err, errNameTaken):
			return taken(name)
		case errors.Is(err, errUnknown): // revoked in this moment
			return usedUp(rec.ID)
		case !errors.Is(err, errUsedUp):
			return err
		}
		// The watch may be a moment behind.
		old, err = s.tokens.secrets().Get(ctx, name+nodeSuffix, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return usedUp(rec.ID)
		}
		if err != nil {
			return fmt.Errorf("read the password of node %s: %w", name, err)
		}
	}
	if !owns(old, password) {
		return taken(name)
	}
	if rec.UsesLeft != nil && string(old.Data[keyToken]) != rec.ID {
		// The node is known, and joins again with another token than the first time.
		if err := s.tokens.use(ctx, rec.ID); errors.Is(err, errUsedUp) || errors.Is(err, errUnknown) {
			return usedUp(rec.ID)
		} else if err != nil {
			return err
		}
	}
	return nil
}

func usedUp(id string) error {
	return joinwire.Refuse(joinwire.BadToken,
		"token %s is used up; make a new one with `umiak token create` on a server", id)
}

func taken(name string) error {
	return joinwire.Refuse(joinwire.NameTaken,
		"another machine has joined as node %s: set node-name to another name, or, if this machine replaces it, first run `umiak kubectl delete node %s` on a server, or `umiak server forget %s` if it was a server without a node", name, name, name)
}

// renew gives a node new certificates, or only confirms that it would get them. The node shows its certificate, which
// may have expired, and its password.
func (a *API) renew(ctx context.Context, s *serving, r *http.Request, w http.ResponseWriter) (any, error) {
	var req joinwire.NodeRequest
	name, release, err := a.member(ctx, r, w, &req)
	if err != nil {
		return nil, err
	}
	defer release()
	n, err := a.check(ctx, s, &req, plain(a.cfg.names()))
	if err != nil {
		return nil, err
	}
	n.from = remote(r)
	if n.name != name {
		return nil, joinwire.Refuse(joinwire.BadIdentity, "node %s asks for the certificates of node %s", name, n.name)
	}
	if err := a.checkOwner(ctx, s, name, req.Password); err != nil {
		return nil, err
	}
	if err := a.register(ctx, s, n); err != nil {
		// A write that is refused, as by a webhook whose pod runs on this node, does not prevent the renewal.
		var refusal *joinwire.Error
		if errors.As(err, &refusal) || r.URL.Path != joinwire.CheckPath && !a.members.recordless(name) {
			return nil, err
		}
		a.cfg.Log.Warn("cannot record the addresses of a node", "node", name, "error", err)
	}
	if r.URL.Path == joinwire.CheckPath {
		servers, err := a.servers(ctx, s)
		return &joinwire.NodeResponse{Cluster: a.cfg.Cluster, Servers: servers}, err
	}
	resp, err := a.answer(ctx, s, n)
	if err == nil {
		a.cfg.Log.Info("a node has renewed its certificates", "node", name)
	}
	return resp, err
}

// checkOwner refuses a node that is not known any more, or whose name another machine has.
func (a *API) checkOwner(ctx context.Context, s *serving, name, password string) error {
	old := s.known.node(name)
	if old == nil {
		// The watch may be a moment behind.
		var err error
		old, err = s.tokens.secrets().Get(ctx, name+nodeSuffix, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return joinwire.Refuse(joinwire.UnknownNode,
				"node %s was deleted from the cluster; to have it back, restart it with a token", name)
		}
		if err != nil {
			return fmt.Errorf("read the password of node %s: %w", name, err)
		}
	}
	if !owns(old, password) {
		return taken(name)
	}
	return nil
}

// plain returns the names that earlier releases refused: this server's as they are written. A node that joined under
// another name of a server, as one that a wildcard covers, stays.
func plain(dnsNames []string) []string {
	return slices.DeleteFunc(slices.Clone(dnsNames),
		func(n string) bool { return strings.HasPrefix(n, "*.") || n != strings.ToLower(n) })
}

// check checks the request of an admitted node. It may have none of the names.
func (a *API) check(ctx context.Context, s *serving, req *joinwire.NodeRequest, names []string) (*node, error) {
	res, err := a.reserved(ctx, s, req.Name)
	if err != nil {
		return nil, err
	}
	res.names, res.domain = names, a.cfg.Cluster.ClusterDomain
	res.dns = slices.Concat(a.cfg.names(), s.known.serverNames(""))
	n, err := check(req, res)
	if err != nil {
		return nil, joinwire.Refuse(joinwire.BadRequest, "%v", err)
	}
	return n, nil
}

// reserved returns the addresses and ranges that a node may not have, because they are the servers' or the cluster's.
// Those that servers have by their settings are not reserved from servers, which may list each other, nor from a node
// that has registered one before.
func (a *API) reserved(ctx context.Context, s *serving, node string) (reserved, error) {
	out := reserved{ranges: a.members.ranges}
	servers, err := a.servers(ctx, s)
	if err != nil {
		return out, err
	}
	ips := a.cfg.IPs()
	for _, hp := range servers {
		if host, _, err := net.SplitHostPort(hp); err == nil {
			ips = append(ips, host)
		}
	}
	for _, s := range ips {
		if ip, err := netip.ParseAddr(s); err == nil {
			out.ips = append(out.ips, ip.Unmap())
		}
	}
	if !a.members.isServer(node) {
		out.shared = s.known.serverIPs()
		maps.DeleteFunc(out.shared, func(ip netip.Addr, _ string) bool {
			has, _ := a.members.registered(node, ip, false)
			return has
		})
	}
	return out, nil
}

// rangesOf returns the ranges of pods and Services.
func rangesOf(c joinwire.Cluster) []netip.Prefix {
	return slices.Concat(c.ClusterCIDR, c.ServiceCIDR)
}

// servers are the addresses that the API servers have published.
func (a *API) servers(ctx context.Context, s *serving) ([]string, error) {
	list, err := s.tokens.Client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx,
		metav1.ListOptions{LabelSelector: apiservers.Selector, ResourceVersion: "0"})
	if err != nil {
		return nil, fmt.Errorf("list servers: %w", err)
	}
	out := apiservers.Of(list.Items)
	if own := a.cfg.Own(); own != "" && !slices.Contains(out, own) {
		out = append(out, own)
	}
	return out, nil
}

// answer signs.
func (a *API) answer(ctx context.Context, s *serving, n *node) (*joinwire.NodeResponse, error) {
	servers, err := a.servers(ctx, s)
	if err != nil {
		return nil, err
	}
	external := slices.DeleteFunc(slices.Clone(n.external), func(s string) bool {
		ip, err := netip.ParseAddr(s)
		return err != nil || a.members.Disputed(n.name, ip)
	})
	out := &joinwire.NodeResponse{Cluster: a.cfg.Cluster, Servers: servers,
		LifetimeSeconds: int64(NodeLifetime / time.Second),
		ServerCA:        string(a.cfg.Signer.CAPEM(pki.ServerCA)), ClientCA: string(a.cfg.Signer.CAPEM(pki.ClientCA))}
	for _, c := range []struct {
		id  nodecerts.Identity
		csr *x509.CertificateRequest
		to  *string
	}{
		{nodecerts.Kubelet(n.name), n.kubelet, &out.Kubelet}, {nodecerts.Agent(n.name), n.agent, &out.Agent},
		{nodecerts.Serving(n.name), n.serving, &out.Serving},
	} {
		leaf := pki.NodeLeaf(c.id, slices.Concat([]string{n.name}, n.names), slices.Concat(n.ips, external))
		leaf.Lifetime = NodeLifetime
		crt, err := a.cfg.Signer.Sign(leaf, c.csr.PublicKey)
		if err != nil {
			return nil, err
		}
		*c.to = string(crt)
	}
	return out, nil
}
