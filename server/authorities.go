package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/tunnelwire"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/server/cluster/rotation"
	"github.com/umiak-io/umiak/server/pki"
)

// errReopen means that the datastore was opened with certificates that are not in force any more.
var errReopen = errors.New("the datastore has to be opened again")

// sharedMark is a file that is there while the cluster's keys are in the datastore, for commands that work on files.
const (
	sharedMark = "keys-in-datastore"
	markShared = "shared\n"  // the record in the datastore counts
	markByHand = "by hand\n" // the files were changed by force, and count
)

func markFile(d layout.Dirs) string { return filepath.Join(d.Server(), sharedMark) }

// prepareRotation makes this server's part in rotations of several servers, and has nodes follow them.
func (s *Server) prepareRotation() error {
	if s.others == nil {
		if err := s.pki.DropAnnounced(); err != nil {
			return err
		}
		s.tunnels.SetAuthorities(s.authoritiesHash())
		if err := os.Remove(markFile(s.dirs)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the mark of shared keys: %w", err)
		}
		return nil
	}
	cfg := rotation.Config{Name: s.etcdName(), Version: version.Version, PKI: s.pki, TakenOver: s.authoritiesTakenOver, Log: s.log.With("component", "certificates")}
	if s.cfg.DatastoreEndpoint == "" {
		cfg.Servers = s.memberNames
	}
	s.rotation = rotation.New(cfg)
	return nil
}

// memberNames are the servers that are members of the etcd cluster. One that has not started yet gets the keys of now.
func (s *Server) memberNames() []string {
	out := []string{s.etcdName()}
	if cluster := s.EtcdCluster(); cluster != nil {
		for _, m := range cluster.Members() {
			if m.Name != "" && !m.Self {
				out = append(out, m.Name)
			}
		}
	}
	return out
}

// authoritiesHash tells nodes whom to trust.
func (s *Server) authoritiesHash() string {
	return tunnelwire.HashAuthorities(s.pki.CAPEM(pki.ServerCA), s.pki.CAPEM(pki.ClientCA))
}

// authoritiesTakenOver has everybody use the authorities and keys that are in force now.
func (s *Server) authoritiesTakenOver(r *rotation.Record) {
	if err := s.plane.APIServer.ReloadAccountKeys(); err != nil {
		s.log.Error("the API server does not verify ServiceAccount tokens with the keys of now; start this server again", "component", "certificates", "error", err)
	}
	if r.Stage != rotation.Announced { // nodes renew once for both
		s.tunnels.SetAuthorities(s.authoritiesHash())
	}
	s.keysChanged()
	s.tokensChanged() // they hold the hash of the CA
}

// ownKeysCount reports whether the keys in this server's files count rather than a record in the datastore: the state was
// that of one server alone until now, or they were changed by force.
func (s *Server) ownKeysCount() bool {
	if raw, err := os.ReadFile(markFile(s.dirs)); err == nil && string(raw) == markByHand {
		return true
	}
	dc := s.datastoreConfig()
	backend, _ := datastore.Present(dc.Dir)
	return dc.Endpoint == "" && len(s.members) == 0 && backend != datastore.BackendEtcd
}

// claimAuthorities makes the keys here those of the cluster, see rotation.Member. It says whether the datastore has to be
// opened again.
func (s *Server) claimAuthorities(ctx context.Context, c clientv3.KV, own bool) (again bool, err error) {
	changed, err := s.rotation.Claim(ctx, c, own)
	if err != nil {
		return false, err
	}
	if err := atomicfile.Write(markFile(s.dirs), []byte(markShared), 0o600); err != nil {
		return false, err
	}
	if !changed || s.cfg.DatastoreEndpoint != "" {
		return false, nil
	}
	if s.cfg.ClusterReset {
		return false, errors.New("the cluster's keys of now were taken over: start this server again, without cluster-reset")
	}
	return true, nil
}

// forgetServer has nobody wait for a server any more that was given up.
func (s *Server) forgetServer(ctx context.Context, name string) error {
	st := s.datastore()
	if s.rotation == nil || st == nil || name == s.etcdName() {
		return nil
	}
	c, err := datastore.Client(ctx, st)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // only a connection
	return rotation.Forget(ctx, c, name)
}

func (s *Server) syncAuthorities(ctx context.Context, c clientv3.KV) error {
	_, err := s.rotation.Sync(ctx, c)
	return err
}

// rotate begins or finishes rotations while this server runs.
func (s *Server) rotate(ctx context.Context, r RotateRequest) (RotateResult, error) {
	if s.rotation == nil {
		if r.Finish && !r.Force {
			if err := s.nodesFollow(ctx, r.Names, s.started, []string{s.etcdName()}); err != nil {
				return RotateResult{}, err
			}
		}
		out, err := Rotate(s.pki, r)
		s.tunnels.SetAuthorities(s.authoritiesHash())
		return out, err
	}
	st := s.datastore()
	if st == nil {
		return RotateResult{}, rotation.ErrStarting
	}
	c, err := datastore.Client(ctx, st)
	if err != nil {
		return RotateResult{}, err
	}
	defer c.Close() //nolint:errcheck // only a connection
	var out RotateResult
	switch {
	case r.Status:
	case r.Finish:
		if err = s.allFollow(ctx, c); err == nil {
			out.Finished, err = s.rotation.Finish(ctx, c, r.Names, func(names []string, servers []rotation.Report) error {
				if r.Force {
					return nil
				}
				return s.oldIsUnused(ctx, names, servers)
			})
		}
	default:
		if err = s.allFollow(ctx, c); err == nil {
			err = s.rotation.Rotate(ctx, c, r.Names, r.From)
		}
	}
	out.UnderWay = append([]pki.Rotation{}, s.pki.Rotations()...)
	if err == nil {
		var st rotation.Status
		st, err = s.rotation.Status(ctx, c)
		out.Announced, out.Behind, out.Restart = st.Announced, st.Behind, st.Restart
	}
	return out, err
}

// allFollow fails while a server does not serve, or cannot follow a rotation: it would go on with the old keys. Of those
// who share a database only their reports tell.
func (s *Server) allFollow(ctx context.Context, c clientv3.KV) error {
	if s.cfg.DatastoreEndpoint == "" {
		return s.allServe()
	}
	all, err := s.rotation.Reports(ctx, c)
	if err != nil {
		return err
	}
	if serving, _ := s.others.list(); len(serving)+1 > len(all) {
		return fmt.Errorf("of the servers that run, %s and this one, only %d know of rotations: the others are of an older release; bring all to this one first", strings.Join(serving, ", "), len(all))
	}
	return nil
}

// tokenLife is how long a ServiceAccount token of a pod may be used before the kubelet has replaced it.
const tokenLife = time.Hour

// oldIsUnused fails while something may need what a rotation has replaced.
func (s *Server) oldIsUnused(ctx context.Context, names []string, servers []rotation.Report) error {
	first, last := s.started, time.Time{}
	var are []string
	for _, r := range servers {
		are = append(are, r.Name)
		if r.Started.Before(first) {
			first = r.Started
		}
		if r.Started.After(last) {
			last = r.Started
		}
	}
	if until := last.Add(tokenLife); slices.Contains(names, pki.ServiceAccount) && time.Now().Before(until) {
		return fmt.Errorf("%s: pods hold tokens of the old key until %s, an hour after the last server was started again: finish the others by their names now (%s), and this one then, or use --force",
			pki.ServiceAccount, until.UTC().Format("15:04 UTC"), strings.Join(slices.DeleteFunc(pki.Rotatable(), func(n string) bool { return n == pki.ServiceAccount || !slices.Contains(names, n) }), " "))
	}
	return s.nodesFollow(ctx, names, first, are)
}

// clientsLook is how long programs of a node may hold connections that were made with the certificate before.
const clientsLook = 5 * time.Minute

// nodesFollow fails while a node has not got the authorities of now, or may have connections of before. All servers have
// been started again since began; their own nodes follow by themselves.
func (s *Server) nodesFollow(ctx context.Context, which []string, began time.Time, servers []string) error {
	if len(which) > 0 && !slices.Contains(which, string(pki.ServerCA)) && !slices.Contains(which, string(pki.ClientCA)) {
		return nil
	}
	client, err := s.client("umiak-certificates", 10*time.Second)
	if err != nil {
		return err
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	want := s.authoritiesHash()
	var without, fresh []string
	for _, n := range nodes.Items {
		if slices.Contains(servers, n.Name) {
			continue
		}
		hash, since, ok := s.tunnels.Authorities(n.Name)
		switch {
		case !ok || hash != want:
			without = append(without, n.Name)
		case since.After(began) && time.Since(since) < clientsLook:
			fresh = append(fresh, n.Name)
		}
	}
	if len(without) > 0 {
		return fmt.Errorf("these nodes have not got the new authorities and would be cut off: %s; they get them by themselves while they are connected and run this release: look at them with `umiak kubectl get nodes`, delete those that are gone for good, or use --force", strings.Join(without, ", "))
	}
	if len(fresh) > 0 {
		return fmt.Errorf("these nodes have got the new authorities only now: %s; their programs may take five minutes until they use them: try again then, or use --force", strings.Join(fresh, ", "))
	}
	return nil
}

// errInDatastore means that files alone must not be changed.
var errInDatastore = errors.New("this server shares its keys with others through the datastore: start all servers and run the command then, on one of them. " +
	"Where they cannot start any more, since an authority has ended: run it with --force on one server, start that one once with --cluster-reset (not with a database outside), and let the others join again")

// RotateFiles does what is asked for on the files of a server that does not run. It refuses where the files are not that
// server's alone, unless forced to: then they count at the next start.
func RotateFiles(d layout.Dirs, r RotateRequest) (RotateResult, error) {
	_, err := os.Stat(markFile(d))
	backend, _ := datastore.Present(d.DB())
	shared := err == nil || backend == datastore.BackendEtcd
	if shared && !r.Status && !r.Force {
		return RotateResult{}, errInDatastore
	}
	p, err := pki.Open(pki.Config{Dir: d.ServerPKI()})
	if err != nil {
		return RotateResult{}, err
	}
	if !shared || r.Status {
		return Rotate(p, r)
	}
	return rotateByHand(d, p, r)
}

// rotateByHand marks the files as those that count before it changes them, and takes the mark back where nothing was changed.
func rotateByHand(d layout.Dirs, p *pki.PKI, r RotateRequest) (out RotateResult, err error) {
	before, err := p.Shared()
	if err != nil {
		return out, err
	}
	mark, err := os.ReadFile(markFile(d))
	marked := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return out, fmt.Errorf("read the mark of shared keys: %w", err)
	}
	if err := atomicfile.Write(markFile(d), []byte(markByHand), 0o600); err != nil {
		return out, err
	}
	out, err = Rotate(p, r)
	if err == nil {
		return out, nil
	}
	now, unread := p.Shared()
	switch {
	case unread != nil || !now.Equal(before): // some of it was done, and counts
	case marked:
		err = errors.Join(err, atomicfile.Write(markFile(d), mark, 0o600))
	default:
		err = errors.Join(err, os.Remove(markFile(d)))
	}
	return out, err
}
