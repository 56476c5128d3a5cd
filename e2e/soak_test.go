package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/machine"
)

// soak is a cluster of servers to which things happen, one after the other at random, while clients write.
type soak struct {
	*env
	lan     *machine.LAN
	servers []*cluster.Cluster
	members bool                      // they are members of an etcd cluster
	dead    map[*cluster.Cluster]bool // was killed by the test: its end is no fault
	writers writers                   // one through each server
	plan    soakPlan
	done    map[string]int // how often each thing has happened
}

// soakPatience limits one wait. Two soaks on one small machine slow each other down; what hangs, hangs longer.
const soakPatience = 5 * time.Minute

// soon is the context for one wait.
func (s *soak) soon() context.Context { return s.within(soakPatience) }

// soakPlan is what a soak was asked to do, and how it can be done again.
type soakPlan struct {
	long   time.Duration
	seed   uint64
	random *rand.Rand
	things []happening
}

// happening is one kind of thing that happens. When it returns, whatever it has broken is whole again or becomes so by
// itself.
type happening struct {
	name string
	do   func(s *soak)
}

// pick returns the servers in random order.
func (s *soak) pick() []*cluster.Cluster {
	out := slices.Clone(s.servers)
	s.plan.random.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// some is a random duration below a limit.
func (s *soak) some(limit time.Duration) time.Duration {
	return time.Duration(s.plan.random.Int64N(int64(limit)))
}

// let gives things time to happen.
func (s *soak) let(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.Context().Done():
	}
}

func (s *soak) kill(c *cluster.Cluster) {
	s.Helper()
	s.dead[c] = true
	s.must(c.Kill())
}

func (s *soak) start(c *cluster.Cluster) {
	s.Helper()
	s.must(c.Start())
	delete(s.dead, c)
}

// alive fails the test if a server's process has ended without being killed.
func (s *soak) alive() {
	s.Helper()
	for _, c := range s.servers {
		select {
		case <-c.Exited():
			if !s.dead[c] {
				s.Fatalf("the process of %s has ended:\n%s", c.M.Name, c.LogTail(30))
			}
		default:
		}
	}
}

// whole waits until every server serves and has nothing to complain of; where they are etcd members, all see the same
// ones, which vote.
func (s *soak) whole() {
	s.Helper()
	for _, c := range s.servers {
		err := c.APIReady(s.soon())
		s.alive()
		s.must(err)
	}
	for _, c := range s.servers {
		s.sees(c, func(out string) error {
			switch {
			case strings.Contains(out, "unhealthy"), strings.Contains(out, "failing"):
				return errors.New("something is wrong")
			case !s.members:
			case strings.Count(out, "  member ") != len(s.servers) || strings.Count(out, "  leader  ") != 1:
				return errors.New("not the members that there should be")
			case strings.Contains(out, "  learner  ") || strings.Contains(out, "  unreachable  ") ||
				strings.Contains(out, "  not started  "):
				return errors.New("not all members take part")
			}
			return nil
		})
		s.alive()
	}
}

// sees waits until a server's status is as it should be.
func (s *soak) sees(c *cluster.Cluster, check func(out string) error) {
	s.Helper()
	s.must(cluster.Eventually(s.within(3*patience), func(ctx context.Context) error {
		out, err := c.Umiak(ctx, "status")
		if out != "" {
			err = check(out) // it exits with 1 while a part is not ready
		}
		if err != nil {
			return fmt.Errorf("status of %s: %w\n%s", c.M.Name, err, out)
		}
		return nil
	}))
}

// soakServers makes servers without nodes that are one cluster.
func soakServers(t *testing.T, names []string, settings map[string]string,
	token func(first *env) map[string]string) *soak {
	l := lan(t)
	e := off(t, cluster.Options{Name: names[0], LAN: l, Images: []string{}})
	s := &soak{env: e, lan: l, dead: map[*cluster.Cluster]bool{}}
	if settings == nil {
		settings = map[string]string{"datastore-endpoint": e.postgres(l)}
	}
	settings["disable-agent"] = "true"
	s.small(e.Cluster)
	e.must(e.Configure(settings))
	e.must(e.Start())
	e.must(e.APIReady(e.within(soakPatience)))
	e.ctx = e.Context()
	e.namespace()
	s.servers = append(s.servers, e.Cluster)
	for _, name := range names[1:] {
		s.servers = append(s.servers, s.another(name, token(e)))
	}
	return s
}

// another makes one more server and waits until it serves. Its settings go on to name the one that took it in.
func (s *soak) another(name string, settings map[string]string) *cluster.Cluster {
	s.Helper()
	settings["disable-agent"] = "true"
	c := off(s.T, cluster.Options{Name: name, LAN: s.lan, Settings: settings, Images: []string{}}).Cluster
	s.small(c)
	s.must(c.Start())
	s.must(c.APIReady(s.soon()))
	return c
}

// small gives a server a disk that can be filled up.
func (s *soak) small(c *cluster.Cluster) {
	s.Helper()
	_, err := c.M.Run(s.soon(), "sh", "-euc",
		"mkdir -p /var/lib/umiak/server/db && mount -t tmpfs -o size=700m,mode=700 none /var/lib/umiak/server/db")
	s.must(err)
}

func joinByToken(e *env) map[string]string {
	return map[string]string{"server": e.url(), "token": e.token("--kind", "server")}
}

// TestSoakServers: things happen to three servers. UMIAK_SOAK says for how long, UMIAK_SOAK_SEED which things, and
// UMIAK_SOAK_ONLY names those that may happen; `scripts/soak servers` sets them.
func TestSoakServers(t *testing.T) {
	t.Parallel()
	plan := planSoak(t, 45*time.Second, happenings)
	s := soakServers(t, []string{"k1", "k2", "k3"}, map[string]string{"cluster-init": "true"}, joinByToken)
	s.members = true
	s.run(plan)
}

// TestSoakDatabase: the same with two servers on PostgreSQL, which fails over.
func TestSoakDatabase(t *testing.T) {
	t.Parallel()
	plan := planSoak(t, 45*time.Second, databaseHappenings)
	s := soakServers(t, []string{"d1", "d2"}, nil, func(e *env) map[string]string {
		raw, err := os.ReadFile(e.hostPath(cluster.Dirs().ServerToken()))
		e.must(err)
		return map[string]string{"datastore-endpoint": e.endpoint, "token": strings.TrimSpace(string(raw))}
	})
	s.run(plan)
}

// run lets things happen until the time is over; in a long run, each at least once.
func (s *soak) run(plan soakPlan) {
	s.Helper()
	s.plan, s.done = plan, map[string]int{}
	defer s.report(time.Now())
	ctx, cancel := context.WithCancel(s.Context())
	var wg sync.WaitGroup
	for i, c := range s.servers {
		// A rotation of the keys of Secrets rewrites every ConfigMap: a long run must not have too many.
		w := &writer{id: i, kube: c.Kube, ns: s.ns, pace: max(pace, plan.long/5000)}
		s.writers = append(s.writers, w)
		wg.Go(func() { w.run(ctx) })
	}
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	s.Cleanup(stop)
	s.whole()
	all, end := plan.things, time.Now().Add(plan.long)
	for n := 0; time.Now().Before(end) || n < len(all) && os.Getenv("UMIAK_SOAK") != ""; n++ {
		if n%len(all) == 0 {
			plan.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		}
		h := all[n%len(all)]
		begun := time.Now()
		s.Logf("%s %s", begun.Format(time.TimeOnly), h.name)
		h.do(s)
		s.alive()
		s.whole()
		s.done[h.name]++
		s.Logf("%s %s: whole again after %s", time.Now().Format(time.TimeOnly), h.name,
			time.Since(begun).Round(100*time.Millisecond))
	}
	stop()
	s.nothingLost(s.writers)
}

// report says at the end, also of a run that fails, what ran, what happened, and how the servers are.
func (s *soak) report(begun time.Time) {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.Context()), patience)
	defer cancel()
	var counts []string
	for _, h := range s.plan.things {
		counts = append(counts, fmt.Sprintf("%s %d", h.name, s.done[h.name]))
	}
	slices.Sort(counts)
	acked := 0
	for _, w := range s.writers {
		w.mu.Lock()
		acked += len(w.acked)
		w.mu.Unlock()
	}
	version, err := s.Umiak(ctx, "version")
	if err != nil {
		version = err.Error()
	}
	result := "passed"
	if s.Failed() {
		result = "FAILED"
	}
	s.Logf("soak: %s", strings.TrimSpace(version))
	s.Logf("soak: UMIAK_SOAK_SEED=%d, %s of %s, %s", s.plan.seed, time.Since(begun).Round(time.Second), s.plan.long,
		result)
	s.Logf("soak: happened and whole again: %s", strings.Join(counts, ", "))
	s.Logf("soak: %d writes acknowledged", acked)
	for _, c := range s.servers {
		state := "all is well"
		if out, err := c.Umiak(ctx, "status"); err != nil {
			state = fmt.Sprintf("%v\n%s", err, out)
		}
		s.Logf("soak: %s at %s: %s", c.M.Name, c.M.IP, state)
	}
}

// planSoak reads how long a soak takes, from which seed, and what happens.
func planSoak(t *testing.T, short time.Duration, all []happening) soakPlan {
	t.Helper()
	plan := soakPlan{long: short, seed: uint64(time.Now().UnixNano())}
	if v := os.Getenv("UMIAK_SOAK"); v != "" {
		var err error
		if plan.long, err = time.ParseDuration(v); err != nil {
			t.Fatalf("UMIAK_SOAK: %v", err)
		}
	}
	if v := os.Getenv("UMIAK_SOAK_SEED"); v != "" {
		if _, err := fmt.Sscan(v, &plan.seed); err != nil {
			t.Fatalf("UMIAK_SOAK_SEED: %v", err)
		}
	}
	t.Logf("UMIAK_SOAK_SEED=%d", plan.seed)
	var names []string
	only := strings.FieldsFunc(os.Getenv("UMIAK_SOAK_ONLY"), func(r rune) bool { return r == ',' })
	for _, h := range all {
		names = append(names, h.name)
		if len(only) == 0 || slices.Contains(only, h.name) {
			plan.things = append(plan.things, h)
		}
	}
	if len(plan.things) == 0 {
		t.Fatalf("UMIAK_SOAK_ONLY: none of %q can happen; these can: %q", only, names)
	}
	plan.random = rand.New(rand.NewPCG(plan.seed, 0))
	return plan
}
