package joinapi

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/internal/version"
)

// joinServer admits a server with a token for servers, which gets the cluster's keys. It may repeat the request until it
// serves.
func (a *API) joinServer(ctx context.Context, s *serving, r *http.Request, w http.ResponseWriter) (any, error) {
	rec, err := a.tokenOf(s, r, w)
	if err != nil {
		return nil, err
	}
	if rec.Kind != token.Server {
		return nil, joinwire.Refuse(joinwire.BadToken,
			"token %s lets agents join, not servers; `umiak token create --kind server` on a server makes one for servers", rec.ID)
	}
	err = version.ServerFits(r.Header.Get(joinwire.VersionHeader), a.cfg.Version)
	if err == nil {
		err = version.EtcdFits(r.Header.Get(joinwire.EtcdHeader), a.cfg.Etcd)
	}
	if err != nil {
		return nil, joinwire.Refuse(joinwire.BadVersion, "%v", err)
	}
	var req joinwire.ServerRequest
	release, err := a.enter(ctx, r, w, &req)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := checkServer(&req, slices.Concat(a.cfg.names(), s.known.serverNames(req.Name))); err != nil {
		return nil, joinwire.Refuse(joinwire.BadRequest, "%v", err)
	}
	if err := fits(&req, a.cfg.Servers); err != nil {
		return nil, err
	}
	if err := a.yield(ctx, s, req.Name, req.Password); err != nil {
		return nil, err
	}
	if r.URL.Path == joinwire.ServerCheckPath {
		return a.cfg.Servers.Check(ctx, &req)
	}
	resp, err := a.cfg.Servers.Admit(ctx, &req)
	if err != nil {
		return nil, err
	}
	// The name is claimed last, so that a join that fails leaves none behind.
	if err := a.admit(ctx, s, rec, req.Name, req.Password, token.Server, nil); err != nil {
		if err := a.cfg.Servers.Withdraw(context.WithoutCancel(ctx), &req); err != nil {
			a.cfg.Log.Warn("cannot take out a server whose join was refused", "server", req.Name, "error", err)
		}
		return nil, err
	}
	a.cfg.Log.Info("a server joins", "server", req.Name, "token", rec.ID, "from", remote(r))
	return resp, nil
}

// checkServer checks what can be checked without the cluster.
func checkServer(r *joinwire.ServerRequest, reserved []string) error {
	if err := checkName(r.Name, r.Password, reserved); err != nil {
		return err
	}
	switch r.Datastore {
	case joinwire.External:
		if r.Peer != "" {
			return fmt.Errorf("the server has a peer address, which is for etcd")
		}
	case joinwire.Etcd:
		p, err := netip.ParseAddrPort(r.Peer)
		if err != nil || p.Port() == 0 || p.Addr().Zone() != "" || p.Addr().IsUnspecified() || p.Addr().IsLoopback() ||
			p.Addr().IsMulticast() {
			return fmt.Errorf("peer address %q is not an address and port that other servers reach", r.Peer)
		}
	default:
		return fmt.Errorf("datastore %q is not one of %s, %s", r.Datastore, joinwire.Etcd, joinwire.External)
	}
	return nil
}

// fits returns the reason why a server does not match those that exist.
func fits(r *joinwire.ServerRequest, s Servers) error {
	switch have := s.Datastore(); {
	case have == "":
		return joinwire.Refuse(joinwire.NotShared,
			"the cluster's state is in SQLite, which is for one server; restart that server once with --cluster-init, which moves the state into etcd, and try again")
	case have != r.Datastore && have == joinwire.External:
		return joinwire.Refuse(joinwire.NotShared,
			"the cluster's state is in a database outside: set datastore-endpoint to the same one here")
	case have != r.Datastore:
		return joinwire.Refuse(joinwire.NotShared,
			"the cluster's state is in its servers' own etcd: leave datastore-endpoint out here")
	}
	if diff := joinwire.Differences(s.Settings(), r.Settings); len(diff) > 0 {
		return joinwire.Refuse(joinwire.BadSettings, "%s", Describe(diff))
	}
	return nil
}

// Describe lists the settings that differ, for the administrator of the joining server.
func Describe(diff []joinwire.Difference) string {
	var all []string
	for _, d := range diff {
		all = append(all, fmt.Sprintf("%s is %s here and %s in the cluster", d.Key, quoted(d.Theirs), quoted(d.Ours)))
	}
	return "these settings must be the cluster's: " + strings.Join(all, "; ")
}

// quoted is a setting's value for a message.
func quoted(v string) string {
	if v == "" {
		return "not set"
	}
	return fmt.Sprintf("%q", v)
}
