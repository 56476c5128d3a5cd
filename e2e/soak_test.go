package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
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
	random  *rand.Rand
	servers []*cluster.Cluster
	members bool                      // they are members of an etcd cluster
	dead    map[*cluster.Cluster]bool // was killed by the test: its end is no fault
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
	s.random.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// some is a random duration below a limit.
func (s *soak) some(limit time.Duration) time.Duration {
	return time.Duration(s.random.Int64N(int64(limit)))
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

// alive fails the test if a server's process has ended that nobody killed.
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
		err := c.APIReady(s.within(3 * patience))
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
			case strings.Contains(out, "  learner  ") || strings.Contains(out, "  unreachable  ") || strings.Contains(out, "  not started  "):
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
func soakServers(t *testing.T, names []string, settings map[string]string, token func(first *env) map[string]string) *soak {
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
	e.must(e.APIReady(e.within(3 * patience)))
	e.ctx = e.within(time.Hour)
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
	s.must(c.APIReady(s.within(3 * patience)))
	return c
}

// small gives a server a disk that can be filled up.
func (s *soak) small(c *cluster.Cluster) {
	s.Helper()
	_, err := c.M.Run(s.soon(), "sh", "-euc", "mkdir -p /var/lib/umiak/server/db && mount -t tmpfs -o size=700m,mode=700 none /var/lib/umiak/server/db")
	s.must(err)
}

func joinByToken(e *env) map[string]string {
	return map[string]string{"server": e.url(), "token": e.token("--kind", "server")}
}

// TestSoakServers: things happen to three servers. UMIAK_SOAK says for how long, UMIAK_SOAK_SEED which things, and
// UMIAK_SOAK_ONLY names those that may happen; `scripts/soak servers` sets them.
func TestSoakServers(t *testing.T) {
	t.Parallel()
	long, random, all := soakPlan(t, 100*time.Second, happenings)
	s := soakServers(t, []string{"k1", "k2", "k3"}, map[string]string{"cluster-init": "true"}, joinByToken)
	s.members = true
	s.run(long, random, all)
}

// TestSoakDatabase: the same with two servers on PostgreSQL, which fails over.
func TestSoakDatabase(t *testing.T) {
	t.Parallel()
	long, random, all := soakPlan(t, 45*time.Second, databaseHappenings)
	s := soakServers(t, []string{"d1", "d2"}, nil, func(e *env) map[string]string {
		raw, err := os.ReadFile(e.hostPath(cluster.Dirs().ServerToken()))
		e.must(err)
		return map[string]string{"datastore-endpoint": e.endpoint, "token": strings.TrimSpace(string(raw))}
	})
	s.run(long, random, all)
}

// run lets things happen until the time is over; in a long run, each at least once.
func (s *soak) run(long time.Duration, random *rand.Rand, all []happening) {
	s.Helper()
	s.random = random
	var ws writers
	ctx, cancel := context.WithCancel(s.Context())
	var wg sync.WaitGroup
	for i, c := range s.servers {
		w := &writer{id: i, kube: c.Kube, ns: s.ns}
		ws = append(ws, w)
		wg.Go(func() { w.run(ctx) })
	}
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	s.Cleanup(stop)
	end := time.Now().Add(long)
	for n := 0; time.Now().Before(end) || n < len(all) && os.Getenv("UMIAK_SOAK") != ""; n++ {
		if n%len(all) == 0 {
			s.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		}
		h := all[n%len(all)]
		begun := time.Now()
		s.Logf("%s %s", begun.Format(time.TimeOnly), h.name)
		h.do(s)
		s.alive()
		s.whole()
		s.Logf("%s %s: whole again after %s", time.Now().Format(time.TimeOnly), h.name, time.Since(begun).Round(100*time.Millisecond))
	}
	stop()
	s.nothingLost(ws)
}

// soakPlan reads how long a soak takes, from which seed, and what happens.
func soakPlan(t *testing.T, short time.Duration, all []happening) (long time.Duration, random *rand.Rand, chosen []happening) {
	t.Helper()
	long = short
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("UMIAK_SOAK"); v != "" {
		var err error
		if long, err = time.ParseDuration(v); err != nil {
			t.Fatalf("UMIAK_SOAK: %v", err)
		}
	}
	if v := os.Getenv("UMIAK_SOAK_SEED"); v != "" {
		if _, err := fmt.Sscan(v, &seed); err != nil {
			t.Fatalf("UMIAK_SOAK_SEED: %v", err)
		}
	}
	t.Logf("UMIAK_SOAK_SEED=%d", seed)
	var names []string
	only := strings.FieldsFunc(os.Getenv("UMIAK_SOAK_ONLY"), func(r rune) bool { return r == ',' })
	for _, h := range all {
		names = append(names, h.name)
		if len(only) == 0 || slices.Contains(only, h.name) {
			chosen = append(chosen, h)
		}
	}
	if len(chosen) == 0 {
		t.Fatalf("UMIAK_SOAK_ONLY: none of %q can happen; these can: %q", only, names)
	}
	return long, rand.New(rand.NewPCG(seed, 0)), chosen
}

// happenings are what happens to servers that are etcd members.
var happenings = []happening{
	{"killed", (*soak).killed},
	{"comes-and-goes", (*soak).comesAndGoes},
	{"cut-off", (*soak).cutOff},
	{"restarted", (*soak).restarted},
	{"no-quorum", (*soak).noQuorum},
	{"moved", (*soak).moved},
	{"all-moved", (*soak).allMoved},
	{"joined-half", (*soak).joinedHalf},
	{"closed-port", (*soak).closedPort},
	{"filled-up", (*soak).filledUp},
	{"token", (*soak).rotatesToken},
	{"keys", (*soak).rotatesKeys},
}

// databaseHappenings are what happens to servers of a database, and to the database.
var databaseHappenings = []happening{
	{"killed", (*soak).killed},
	{"cut-off", (*soak).cutOff},
	{"restarted", (*soak).restarted},
	{"read-only", (*soak).databaseReadOnly},
	{"database-restarted", (*soak).databaseRestarted},
	{"database-cut-off", (*soak).databaseCutOff},
	{"keys", (*soak).rotatesKeys},
}

func (s *soak) killed() {
	c := s.pick()[0]
	s.kill(c)
	s.let(s.some(8 * time.Second))
	s.start(c)
}

// comesAndGoes has a server whose neighbour in a crash loop makes a majority with it for seconds at a time.
func (s *soak) comesAndGoes() {
	all := s.pick()
	s.kill(all[1])
	for range 3 {
		s.kill(all[2])
		s.let(2*time.Second + s.some(14*time.Second))
		s.start(all[2])
		s.let(2*time.Second + s.some(8*time.Second))
		s.alive()
	}
	s.start(all[1])
}

func (s *soak) cutOff() {
	c := s.pick()[0]
	s.must(s.lan.Cut(c.M))
	s.let(3*time.Second + s.some(17*time.Second))
	s.must(s.lan.Mend(c.M))
}

func (s *soak) restarted() {
	for _, c := range s.pick() {
		s.stop(c, patience)
		s.start(c)
		s.must(c.APIReady(s.within(3 * patience)))
	}
}

// stop has a server end, which must be without an error and within a time.
func (s *soak) stop(c *cluster.Cluster, limit time.Duration) {
	s.Helper()
	s.dead[c] = true
	if err := c.Stop(s.within(limit)); err != nil {
		s.Fatalf("stop %s: %v", c.M.Name, err)
	}
}

// noQuorum takes two of three servers away: the third names them, is quiet, and stops when it is told to.
func (s *soak) noQuorum() {
	all := s.pick()
	left := all[0]
	s.kill(all[1])
	s.kill(all[2])
	s.sees(left, func(out string) error {
		for _, c := range all[1:] {
			if !strings.Contains(out, c.M.Name+" at "+c.M.IP+":2380") {
				return fmt.Errorf("%s is not named", c.M.Name)
			}
		}
		return nil
	})
	log := func() []byte {
		raw, err := os.ReadFile(left.LogFile())
		s.must(err)
		return raw
	}
	s.let(5 * time.Second) // what was under way ends
	const quiet = 20 * time.Second
	before, cpu := len(log()), machine.CPUTime(left.PID())
	s.let(quiet)
	said := log()[before:]
	s.Logf("without quorum for %s: %d bytes of log, %s of CPU", quiet, len(said), machine.CPUTime(left.PID())-cpu)
	if lines := strings.Count(string(said), "\n"); lines > 20 {
		s.Errorf("%d lines within %s without quorum:\n%.5000s", lines, quiet, said)
	}
	begun := time.Now()
	s.stop(left, patience)
	s.Logf("it stopped within %s", time.Since(begun).Round(100*time.Millisecond))
	if tail := left.LogTail(20); strings.Contains(tail, "does not stop") {
		s.Errorf("a part did not stop:\n%s", tail)
	}
	for _, c := range all {
		s.start(c)
	}
}

func (s *soak) moved() {
	c := s.pick()[0]
	s.stop(c, patience)
	s.must(s.lan.Renumber(c.M))
	s.start(c)
}

// allMoved carries all servers into another network.
func (s *soak) allMoved() {
	for _, c := range s.servers {
		s.kill(c)
	}
	for _, c := range s.servers {
		s.must(s.lan.Renumber(c.M))
		s.start(c)
	}
	all := s.pick()
	s.sees(all[0], func(out string) error {
		if !strings.Contains(out, "umiak server moved") {
			return errors.New("the way out is not named")
		}
		return nil
	})
	args := []string{"server", "moved"}
	for _, c := range all[1:] {
		args = append(args, c.M.Name+"="+c.M.IP)
	}
	_, err := all[0].Umiak(s.soon(), args...)
	s.must(err)
}

// joinedHalf has a machine join that is switched off in the middle; then it joins after all, or never comes.
func (s *soak) joinedHalf() {
	by := s.pick()[0]
	name := fmt.Sprintf("x%d", s.random.IntN(1000))
	first := &env{T: s.T, Cluster: by}
	settings := joinByToken(first)
	settings["disable-agent"] = "true"
	c := off(s.T, cluster.Options{Name: name, LAN: s.lan, Settings: settings, Images: []string{}}).Cluster
	s.must(c.Start())
	s.let(s.some(6 * time.Second))
	s.must(c.Kill())
	if s.random.IntN(2) == 0 {
		s.must(c.Start())
		s.must(c.APIReady(s.within(3 * patience)))
		s.must(c.Kill())
	}
	// The one command that status names, as long as there is anything of it.
	s.sees(by, func(out string) error {
		for _, which := range []string{name, c.M.IP} {
			if strings.Contains(out, "member "+which+" ") || strings.Contains(out, which+":2380") {
				if _, err := by.Umiak(s.soon(), "server", "forget", which); err != nil {
					return err
				}
				return errors.New("it was there until now")
			}
		}
		return nil
	})
	s.must(c.Destroy())
}

// closedPort has a machine join whose firewall lets no server in; it says so, becomes no member, and joins when the
// firewall is open.
func (s *soak) closedPort() {
	by := s.pick()[0]
	settings := joinByToken(&env{T: s.T, Cluster: by})
	settings["disable-agent"] = "true"
	name := fmt.Sprintf("y%d", s.random.IntN(1000))
	c := off(s.T, cluster.Options{Name: name, LAN: s.lan, Settings: settings, Images: []string{}}).Cluster
	_, err := c.M.Run(s.soon(), "nft", "table inet wall { chain in { type filter hook input priority 0; tcp dport 2380 reject with tcp reset; }; }")
	s.must(err)
	s.must(c.Start())
	s.must(cluster.Eventually(s.soon(), func(context.Context) error {
		if tail := c.LogTail(5); !strings.Contains(tail, "cannot reach "+c.M.IP+":2380") {
			return fmt.Errorf("it does not name the port:\n%s", tail)
		}
		return nil
	}))
	out, err := by.Umiak(s.soon(), "status")
	s.must(err)
	if strings.Contains(out, c.M.IP) {
		s.Errorf("a machine that cannot be reached was taken in:\n%s", out)
	}
	_, err = c.M.Run(s.soon(), "nft", "delete table inet wall")
	s.must(err)
	s.must(c.APIReady(s.within(3 * patience)))
	s.must(c.Kill())
	s.sees(by, func(out string) error {
		if !strings.Contains(out, "member "+name+" ") {
			return nil
		}
		if _, err := by.Umiak(s.soon(), "server", "forget", name); err != nil {
			return err
		}
		return errors.New("it was there until now")
	})
	s.must(c.Destroy())
}

// filledUp leaves a server no room for a while. Its process may end: it cannot keep what it is asked to.
func (s *soak) filledUp() {
	c := s.pick()[0]
	s.dead[c] = true
	_, _ = c.M.Run(s.soon(), "sh", "-c", "cat /dev/zero >/var/lib/umiak/server/db/full") // until nothing more fits
	s.let(2*time.Second + s.some(8*time.Second))
	_, err := c.M.Run(s.soon(), "rm", "/var/lib/umiak/server/db/full")
	s.must(err)
	if c.PID() == 0 {
		s.must(c.Start())
	}
	delete(s.dead, c)
}

func (s *soak) rotatesToken() {
	_, err := s.pick()[0].Umiak(s.soon(), "token", "rotate", "server")
	s.must(err)
}

func (s *soak) rotatesKeys() {
	_, err := s.pick()[0].Umiak(s.within(3*patience), "secrets-encrypt", "rotate")
	s.must(err)
}

// databaseReadOnly has the database take no writes for a while, and connections that never will.
func (s *soak) databaseReadOnly() {
	s.sql("ALTER DATABASE umiak SET default_transaction_read_only = on; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'umiak' AND pid <> pg_backend_pid()")
	c := s.pick()[0]
	s.sees(c, func(out string) error {
		if !strings.Contains(out, "unhealthy") || !strings.Contains(out, "read-only") {
			return errors.New("it does not say that the database takes no writes")
		}
		return nil
	})
	s.let(s.some(10 * time.Second))
	s.sql("BEGIN READ WRITE; ALTER DATABASE umiak RESET default_transaction_read_only; COMMIT")
}

func (s *soak) databaseRestarted() {
	_, err := s.database.M.Run(s.soon(), "sh", "-euc", `
		cd /*/pg 2>/dev/null || cd "$0"
		setpriv --reuid=postgres --regid=postgres --clear-groups -- "$(ls /usr/lib/postgresql/*/bin/pg_ctl | tail -1)" -w -D data -l log -m immediate restart -o "-c listen_addresses=* -c unix_socket_directories=$0"`, filepath.Join(s.database.M.Dir, "pg"))
	s.must(err)
}

func (s *soak) databaseCutOff() {
	s.must(s.lan.Cut(s.database.M))
	s.let(2*time.Second + s.some(15*time.Second))
	s.must(s.lan.Mend(s.database.M))
}

func (s *soak) sql(statements string) {
	s.Helper()
	_, err := s.database.M.Run(s.soon(), "psql", "-h", filepath.Join(s.database.M.Dir, "pg"), "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-c", statements)
	s.must(err)
}
