package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/machine"
	"github.com/umiak-io/umiak/server/pki"
)

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
	{"authorities", (*soak).rotatesAuthorities},
}

// databaseHappenings are what happens to servers of a database, and to the database.
var databaseHappenings = []happening{
	{"killed", (*soak).killed},
	{"cut-off", (*soak).cutOff},
	{"restarted", (*soak).restarted},
	{"read-only", (*soak).databaseReadOnly},
	{"database-restarted", (*soak).databaseRestarted},
	{"database-cut-off", (*soak).databaseCutOff},
	{"token", (*soak).rotatesToken},
	{"keys", (*soak).rotatesKeys},
	{"authorities", (*soak).rotatesAuthorities},
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
		s.must(c.APIReady(s.soon()))
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

// noQuorum takes two of three servers away: the third names them, logs little, and stops at a signal.
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
	name := fmt.Sprintf("x%d", s.plan.random.IntN(1000))
	first := &env{T: s.T, Cluster: by}
	settings := joinByToken(first)
	settings["disable-agent"] = "true"
	c := off(s.T, cluster.Options{Name: name, LAN: s.lan, Settings: settings, Images: []string{}}).Cluster
	s.must(c.Start())
	s.let(s.some(6 * time.Second))
	s.must(c.Kill())
	if s.plan.random.IntN(2) == 0 {
		s.must(c.Start())
		s.must(c.APIReady(s.soon()))
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
	name := fmt.Sprintf("y%d", s.plan.random.IntN(1000))
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
	s.must(c.APIReady(s.soon()))
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

// filledUp leaves a server no room for a while.
func (s *soak) filledUp() {
	c := s.pick()[0]
	_, _ = c.M.Run(s.soon(), "sh", "-c", "cat /dev/zero >/var/lib/umiak/server/db/full") // until nothing more fits
	s.let(2*time.Second + s.some(8*time.Second))
	_, err := c.M.Run(s.soon(), "rm", "/var/lib/umiak/server/db/full")
	s.must(err)
}

func (s *soak) rotatesToken() {
	_, err := s.pick()[0].Umiak(s.soon(), "token", "rotate", "server")
	s.must(err)
}

// rotatesKeys tries again where the command says so, as when a server has started a moment ago.
func (s *soak) rotatesKeys() {
	by, ctx := s.pick()[0], s.within(2*soakPatience)
	for {
		out, err := by.Umiak(ctx, "secrets-encrypt", "rotate")
		if err == nil {
			return
		}
		if err = fmt.Errorf("%w\n%s", err, out); !strings.Contains(err.Error(), " again") || ctx.Err() != nil {
			s.must(err)
		}
		s.let(2 * time.Second)
	}
}

// rotatesAuthorities replaces all authorities, or one of them, in the three steps that docs/certificates.md names. One
// server, perhaps that which is asked, may die while it begins or finishes; another one goes on then.
func (s *soak) rotatesAuthorities() {
	names := pki.Rotatable()
	if s.plan.random.IntN(2) == 0 {
		names = names[s.plan.random.IntN(len(names)):][:1]
	}
	s.Logf("rotate-ca %s", strings.Join(names, " "))
	before := s.shared(s.Cluster)
	s.insistsBesideDeath(append([]string{"certificate", "rotate-ca"}, names...), func() bool {
		return !s.has("old") || s.has("next")
	})
	s.alike(s.servers...)
	s.restarted()
	// Clients of before have gone on until now; those of now know the new ones alone, too.
	s.reconnect(s.servers...)
	for i, c := range s.servers {
		s.writers[i].use(c.Kube)
	}
	// Nothing here has a pod with a token of the old key.
	s.insistsBesideDeath(append([]string{"certificate", "rotate-ca", "--finish", "--force"}, names...), func() bool {
		return s.has("old")
	})
	s.alike(s.servers...)
	for name, raw := range s.shared(s.Cluster) {
		of, isKey := strings.CutSuffix(name, ".key")
		if changed := raw != before[name]; isKey && changed != slices.Contains(names, of) {
			s.Errorf("%s was replaced: %v; rotated were %q", name, changed, names)
		}
	}
}

// has reports whether a server has keys that it needs during a rotation only: "next" those that are announced, "old"
// those that are still trusted.
func (s *soak) has(which string) bool {
	found, _ := filepath.Glob(filepath.Join(s.hostPath(cluster.Dirs().ServerPKI()), "*-"+which+".*"))
	return len(found) > 0
}

// insistsBesideDeath runs a command, on one server after the other until it succeeds or todo reports that nothing is
// left to do. In half of the cases a server dies meanwhile.
func (s *soak) insistsBesideDeath(args []string, todo func() bool) {
	s.Helper()
	order, ctx, done := s.pick(), s.soon(), make(chan error, 1)
	go func() {
		n := 0
		done <- cluster.Eventually(ctx, func(ctx context.Context) error {
			if n > 0 && !todo() {
				return nil
			}
			by := order[n%len(order)]
			n++
			out, err := by.Umiak(ctx, args...)
			if err != nil {
				err = fmt.Errorf("%q on %s: %w\n%s", args, by.M.Name, err, out)
			}
			return err
		})
	}()
	if s.plan.random.IntN(2) == 0 {
		c := s.pick()[0]
		s.let(s.some(4 * time.Second))
		s.kill(c)
		s.let(s.some(4 * time.Second))
		s.start(c)
		s.Logf("%s was killed while %q went from %s on", c.M.Name, args, order[0].M.Name)
	}
	s.must(<-done)
	for _, c := range s.servers {
		s.must(c.APIReady(s.soon()))
	}
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
	_, err := s.database.M.Run(s.soon(), "psql", "-h", filepath.Join(s.database.M.Dir, "pg"), "-U", "postgres", "-v",
		"ON_ERROR_STOP=1", "-d", "postgres", "-c", statements)
	s.must(err)
}
