package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/tunnelwire"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/server/cluster/rotation"
	"github.com/umiak-io/umiak/server/pki"
)

// Tunnels are the nodes' connections to this server, through which nodes learn which authorities to trust.
type Tunnels interface {
	// SetAuthorities gives nodes the hash of the authorities in force.
	SetAuthorities(hash string)
	// Authorities returns the hash of the authorities that a node has, and since when.
	Authorities(node string) (hash string, since time.Time, ok bool)
}

// Authorities replaces the authorities and the ServiceAccount key while the cluster runs, and takes over those that
// another server has replaced.
type Authorities struct {
	cfg      Config
	peers    *Peers
	rotation *rotation.Member // nil on a server alone
	started  time.Time
}

// RotateRequest asks to begin or to finish rotations of authorities and of the ServiceAccount key, or, with Status,
// only which are under way. No names mean all.
type RotateRequest struct {
	Names  []string `json:"names,omitempty"`
	From   string   `json:"from,omitempty"`
	Finish bool     `json:"finish,omitempty"`
	Force  bool     `json:"force,omitempty"`
	Status bool     `json:"status,omitempty"`
}

// RotateResult lists the authorities that a rotation has finished, and the rotations that are under way.
type RotateResult struct {
	Finished []string       `json:"finished,omitempty"`
	UnderWay []pki.Rotation `json:"underWay"`
	// Announced are the authorities that all servers must trust before they sign; Behind are the servers that do not yet.
	Announced []string `json:"announced,omitempty"`
	Behind    []string `json:"behind,omitempty"`
	// Restart are servers that have to be started again before the rotation can be finished.
	Restart []string `json:"restart,omitempty"`
}

func newAuthorities(cfg Config, peers *Peers, takenOver func()) (*Authorities, error) {
	a := &Authorities{cfg: cfg, peers: peers, started: time.Now()}
	if cfg.Shared == "" {
		if err := cfg.PKI.DropAnnounced(); err != nil {
			return nil, err
		}
		cfg.Tunnels.SetAuthorities(a.Hash())
		if err := os.Remove(markFile(cfg.Dirs)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove the mark of shared keys: %w", err)
		}
		return a, nil
	}
	rc := rotation.Config{Name: cfg.Name, Version: version.Version, PKI: cfg.PKI,
		Log: cfg.Log.With("component", "certificates")}
	rc.TakenOver = func(r *rotation.Record) {
		takenOver()
		if r.Stage != rotation.Announced { // nodes renew once for both stages
			cfg.Tunnels.SetAuthorities(a.Hash())
		}
	}
	if !cfg.External() {
		rc.Servers = a.memberNames
	}
	a.rotation = rotation.New(rc)
	return a, nil
}

// memberNames returns the names of the members of the etcd cluster. A member without a name has not started yet, and
// gets the keys in force when it does.
func (a *Authorities) memberNames() []string {
	out := []string{a.cfg.Name}
	for _, m := range a.cfg.Datastore.Members() {
		if m.Name != "" && !m.Self {
			out = append(out, m.Name)
		}
	}
	return out
}

// Hash identifies to nodes the authorities that they have to trust.
func (a *Authorities) Hash() string {
	return tunnelwire.HashAuthorities(a.cfg.PKI.CAPEM(pki.ServerCA), a.cfg.PKI.CAPEM(pki.ClientCA))
}

// Started returns when this server was started: since then its node has the authorities of Hash.
func (a *Authorities) Started() time.Time { return a.started }

// filesInForce reports whether the keys in this server's files are in force, rather than those of the record in the
// datastore: the state was that of one server alone until now, or the files were changed by force.
func (a *Authorities) filesInForce() bool {
	if raw, err := os.ReadFile(markFile(a.cfg.Dirs)); err == nil && string(raw) == markByHand {
		return true
	}
	backend, _ := datastore.Present(a.cfg.Dirs.DB())
	return !a.cfg.External() && !a.cfg.Joining && backend != datastore.BackendEtcd
}

// claim makes the keys here those of the cluster, see rotation.Member. It reports whether the datastore has to be
// opened again.
func (a *Authorities) claim(ctx context.Context, c clientv3.KV, own bool) (again bool, err error) {
	changed, err := a.rotation.Claim(ctx, c, own)
	if err != nil {
		return false, err
	}
	if err := atomicfile.Write(markFile(a.cfg.Dirs), []byte(markShared), 0o600); err != nil {
		return false, err
	}
	if !changed || a.cfg.External() {
		return false, nil
	}
	if a.cfg.Reset {
		return false, errors.New("the cluster's keys of now were taken over: start this server again, without cluster-reset")
	}
	return true, nil
}

// forget removes what a server that is given up has reported: a rotation does not wait for it any more.
func (a *Authorities) forget(ctx context.Context, name string) error {
	if a.rotation == nil || a.cfg.Datastore.Store() == nil || name == a.cfg.Name {
		return nil
	}
	c, err := a.cfg.Datastore.Client(ctx)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // only a connection
	return rotation.Forget(ctx, c, name)
}

// sync takes over the stage that is in force.
func (a *Authorities) sync(ctx context.Context, c clientv3.KV) error {
	_, err := a.rotation.Sync(ctx, c)
	return err
}

// current reports whether this server has the ServiceAccount key that is in force.
func (a *Authorities) current() bool { return a.rotation != nil && a.rotation.Current() }

// Rotate begins or finishes rotations while this server runs.
func (a *Authorities) Rotate(ctx context.Context, r RotateRequest) (RotateResult, error) {
	if a.rotation == nil {
		if r.Finish && !r.Force {
			if err := a.nodesFollow(ctx, r.Names, a.started, []string{a.cfg.Name}); err != nil {
				return RotateResult{}, err
			}
		}
		out, err := rotateLocal(a.cfg.PKI, r)
		a.cfg.Tunnels.SetAuthorities(a.Hash())
		return out, err
	}
	if a.cfg.Datastore.Store() == nil {
		return RotateResult{}, rotation.ErrStarting
	}
	c, err := a.cfg.Datastore.Client(ctx)
	if err != nil {
		return RotateResult{}, err
	}
	defer c.Close() //nolint:errcheck // only a connection
	var out RotateResult
	switch {
	case r.Status:
	case r.Finish:
		if err = a.allFollow(ctx, c); err == nil {
			out.Finished, err = a.rotation.Finish(ctx, c, r.Names,
				func(names []string, servers []rotation.Report) error {
					if r.Force {
						return nil
					}
					return a.oldIsUnused(ctx, names, servers)
				})
		}
	default:
		if err = a.allFollow(ctx, c); err == nil {
			err = a.rotation.Rotate(ctx, c, r.Names, r.From)
		}
	}
	out.UnderWay = append([]pki.Rotation{}, a.cfg.PKI.Rotations()...)
	if err == nil {
		var st rotation.Status
		st, err = a.rotation.Status(ctx, c)
		out.Announced, out.Behind, out.Restart = st.Announced, st.Behind, st.Restart
	}
	return out, err
}

// allFollow fails while a server does not serve, or cannot follow a rotation: it would continue with the old keys.
// Which servers share a database is known only from their reports.
func (a *Authorities) allFollow(ctx context.Context, c clientv3.KV) error {
	if !a.cfg.External() {
		return a.peers.allServe(a.cfg.Datastore.Members())
	}
	all, err := a.rotation.Reports(ctx, c)
	if err != nil {
		return err
	}
	if serving, _ := a.peers.List(); len(serving)+1 > len(all) {
		return fmt.Errorf("of the servers that run, %s and this one, only %d know of rotations: the others are of an older release; "+
			"bring all to this one first", strings.Join(serving, ", "), len(all))
	}
	return nil
}

// tokenLifetime bounds the use of a ServiceAccount token of a pod before the kubelet has replaced it.
const tokenLifetime = time.Hour

// oldIsUnused fails while something may need the keys that a rotation has replaced.
func (a *Authorities) oldIsUnused(ctx context.Context, names []string, servers []rotation.Report) error {
	first, last := a.started, time.Time{}
	var started []string
	for _, r := range servers {
		started = append(started, r.Name)
		if r.Started.Before(first) {
			first = r.Started
		}
		if r.Started.After(last) {
			last = r.Started
		}
	}
	if until := last.Add(tokenLifetime); slices.Contains(names, pki.ServiceAccount) && time.Now().Before(until) {
		others := slices.DeleteFunc(pki.Rotatable(),
			func(n string) bool { return n == pki.ServiceAccount || !slices.Contains(names, n) })
		return fmt.Errorf("%s: pods hold tokens of the old key until %s, an hour after the last server was started again: "+
			"finish the others by their names now (%s), and this one then, or use --force",
			pki.ServiceAccount, until.UTC().Format("15:04 UTC"), strings.Join(others, " "))
	}
	return a.nodesFollow(ctx, names, first, started)
}

// connectionLifetime bounds how long programs of a node hold connections that were made with the previous certificate.
const connectionLifetime = 5 * time.Minute

// nodesFollow fails while a node lacks the authorities in force, or may have connections from before. All servers
// have been started again since began; their own nodes need no check.
func (a *Authorities) nodesFollow(ctx context.Context, which []string, began time.Time, servers []string) error {
	if len(which) > 0 && !slices.Contains(which, string(pki.ServerCA)) &&
		!slices.Contains(which, string(pki.ClientCA)) {
		return nil
	}
	client, err := a.cfg.Clients.Client("umiak-certificates", 10*time.Second)
	if err != nil {
		return err
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	want := a.Hash()
	var without, fresh []string
	for _, n := range nodes.Items {
		if slices.Contains(servers, n.Name) {
			continue
		}
		hash, since, ok := a.cfg.Tunnels.Authorities(n.Name)
		switch {
		case !ok || hash != want:
			without = append(without, n.Name)
		case since.After(began) && time.Since(since) < connectionLifetime:
			fresh = append(fresh, n.Name)
		}
	}
	if len(without) > 0 {
		return fmt.Errorf("these nodes have not got the new authorities and would be cut off: %s; they get them by themselves "+
			"while they are connected and run this release: look at them with `umiak kubectl get nodes`, delete those that are "+
			"gone for good, or use --force", strings.Join(without, ", "))
	}
	if len(fresh) > 0 {
		return fmt.Errorf("these nodes have got the new authorities only now: %s; their programs may take five minutes until "+
			"they use them: try again then, or use --force", strings.Join(fresh, ", "))
	}
	return nil
}
