package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/machine"
)

// postgres runs PostgreSQL on a machine of its own and returns the endpoint of an empty database there.
func (e *env) postgres(l *machine.LAN) string {
	e.Helper()
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(bins) == 0 {
		e.Fatal("PostgreSQL is not installed; scripts/test installs it")
	}
	db := off(e.T, cluster.Options{Name: "db", LAN: l, Images: []string{}})
	_, err = db.M.Run(e.soon(), "sh", "-euc", fmt.Sprintf(`
		install -d -o postgres %[2]s; cd %[2]s
		as() { setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"; }
		as %[1]s/initdb --auth=trust --no-sync -D data
		echo "host all all 0.0.0.0/0 trust" >>data/pg_hba.conf
		as %[1]s/pg_ctl -w -D data -l log -o "-c listen_addresses=* -c unix_socket_directories=%[2]s" start
		as %[1]s/createdb -h %[2]s umiak`, filepath.Dir(bins[0]), filepath.Join(db.M.Dir, "pg")))
	e.must(err)
	e.database, e.endpoint = db.Cluster, "postgres://postgres@"+db.M.IP+":5432/umiak?sslmode=disable"
	return e.endpoint
}

// k3sDatabase is a database beside e's that looks as k3s leaves it.
type k3sDatabase struct {
	endpoint, before string
	psql             func(statement string) (string, error)
}

// databaseOfK3s makes a database with the table of kine and the keys that k3s writes.
func (e *env) databaseOfK3s() k3sDatabase {
	e.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin/psql") // postgres has found them
	k := k3sDatabase{endpoint: strings.Replace(e.endpoint, "/umiak?", "/kubernetes?", 1)}
	dir := filepath.Join(e.database.M.Dir, "pg")
	run := func(db, statement string) (string, error) {
		return e.database.M.Run(e.soon(), bins[0], "-h", dir, "-U", "postgres", "-d", db, "-At", "-v", "ON_ERROR_STOP=1",
			"-c", statement)
	}
	k.psql = func(statement string) (string, error) { return run("kubernetes", statement) }
	_, err := run("umiak", "CREATE DATABASE kubernetes")
	e.must(err)
	_, err = k.psql(`CREATE TABLE kine (id BIGSERIAL PRIMARY KEY, name text COLLATE "C", created INTEGER, deleted INTEGER,
			create_revision BIGINT, prev_revision BIGINT, lease INTEGER, value bytea, old_value bytea);
		CREATE INDEX kine_name_index ON kine (name);
		CREATE INDEX kine_name_id_index ON kine (name,id);
		CREATE INDEX kine_id_deleted_index ON kine (id,deleted);
		CREATE INDEX kine_prev_revision_index ON kine (prev_revision);
		CREATE UNIQUE INDEX kine_name_prev_revision_uindex ON kine (name, prev_revision);
		INSERT INTO kine (name, created, deleted, create_revision, prev_revision, lease, value) VALUES
			('compact_rev_key', 1, 0, 0, 0, 0, ''), ('/registry/health', 1, 0, 0, 0, 0, '{"health":"true"}'),
			('/bootstrap/4f2d9a7be0c1', 1, 0, 0, 0, 0, 'sealed'), ('/registry/namespaces/kube-system', 1, 0, 0, 0, 0, 'k8s')`)
	e.must(err)
	k.before = k.content(e)
	return k
}

// content returns a digest of all rows.
func (k k3sDatabase) content(e *env) string {
	e.Helper()
	out, err := k.psql(`SELECT count(*), md5(string_agg(kine::text, ',' ORDER BY id)) FROM kine`)
	e.must(err)
	return out
}

// twoOnDatabase starts a server on a PostgreSQL of its own, and makes another, which is not started, for the same:
// secret is the server token that it needs.
func twoOnDatabase(t *testing.T, first, next string) (e *env, second *cluster.Cluster, endpoint, secret string) {
	t.Helper()
	l := lan(t)
	e = off(t, cluster.Options{Name: first, LAN: l})
	endpoint = e.postgres(l)
	e.must(e.Configure(map[string]string{"datastore-endpoint": endpoint}))
	e.must(e.Start())
	e.ready()
	raw, err := os.ReadFile(e.hostPath(cluster.Dirs().ServerToken()))
	e.must(err)
	return e, e.serverOn(l, next, nil), endpoint, strings.TrimSpace(string(raw))
}

// TestServersOnOneDatabase: a second server needs the database and the server token, and nothing else.
func TestServersOnOneDatabase(t *testing.T) {
	t.Parallel()
	e, second, endpoint, secret := twoOnDatabase(t, "pg1", "pg2")
	refused := func(want string, settings map[string]string) {
		e.Helper()
		if settings["datastore-endpoint"] == "" {
			settings["datastore-endpoint"] = endpoint
		}
		e.must(second.Configure(settings))
		e.must(second.Start())
		select {
		case <-second.Exited():
		case <-e.soon().Done():
			e.Errorf("a second server runs with %v", settings)
		}
		if tail := second.LogTail(5); !strings.Contains(tail, want) || strings.Contains(tail, secret) {
			e.Errorf("want %s, got\n%s", want, tail)
		}
	}
	refused("set its server token", map[string]string{})
	k3s := e.databaseOfK3s()
	refused("holds a cluster of k3s", map[string]string{"datastore-endpoint": k3s.endpoint})
	if now := k3s.content(e); now != k3s.before {
		e.Errorf("k3s' database was changed: %s, was %s", now, k3s.before)
	}
	if entries, err := os.ReadDir(second.M.Host(filepath.Join(cluster.Dirs().Server(), "pki"))); err == nil {
		e.Errorf("there are keys for the cluster that was refused: %v", entries)
	}
	refused("this is not the cluster's server token",
		map[string]string{"token": "um1." + strings.Repeat("0", 64) + ".server.guessed"})
	refused(`cluster-domain is "else.where" here and "cluster.local" in the cluster`,
		map[string]string{"token": secret, "cluster-domain": "else.where"})

	e.must(second.Configure(map[string]string{"datastore-endpoint": endpoint, "token": secret,
		"tls-san": `["B.example.org", "*.apps.example.org", "10.255.0.80"]`}))
	e.must(second.Start())
	e.must(second.Ready(e.within(2 * patience)))
	e.sub("a node with a name of the other server's", func(e *env) {
		tok := e.token("--ttl", "1h")
		for _, name := range []string{"b.example.org", "console.apps.example.org", "pg1", "pg2"} {
			for _, c := range []*cluster.Cluster{e.Cluster, second} {
				k, body := knock(e.T, second.M, c.M.IP+":6443", nil), newIdentity(e.T, name, "10.255.0.7").req
				// each receives the other's names, and the token, a moment later
				e.must(cluster.Eventually(e.soon(), func(context.Context) error {
					if _, err := k.node(tok, body); err == nil ||
						!strings.Contains(err.Message, "is a name of the API server") {
						return notYet("node "+name+" at "+c.M.Name, err)
					}
					return nil
				}))
			}
		}
	})
	e.sub("a node with a virtual address of the other server's", func(e *env) {
		tok := e.token("--ttl", "1h")
		for _, c := range []*cluster.Cluster{e.Cluster, second} {
			k, body := knock(e.T, second.M, c.M.IP+":6443", nil), newIdentity(e.T, "virtual", "10.255.0.80").req
			e.must(cluster.Eventually(e.soon(), func(context.Context) error {
				if _, err := k.node(tok, body); err == nil ||
					!strings.Contains(err.Message, "it is an address of the API server") {
					return notYet("a node at 10.255.0.80, by "+c.M.Name, err)
				}
				return nil
			}))
		}
	})
	nodes, err := second.Kube.CoreV1().Nodes().List(e.soon(), metav1.ListOptions{})
	if err != nil || len(nodes.Items) != 2 {
		t.Errorf("%d nodes, %v", len(nodes.Items), err)
	}
	// Both serve: what one takes the other has, and pods of either are reached through both.
	e.apply(fmt.Sprintf(onNode, "one", "pg1"))
	e.through(second).apply(fmt.Sprintf(onNode, "two", "pg2"))
	for _, c := range []*cluster.Cluster{e.Cluster, second} {
		by := e.through(c)
		for _, pod := range []string{"one", "two"} {
			by.pod(named(pod), isReady)
			if _, err := by.in(pod, "get", "http://127.0.0.1:8080/"); err != nil {
				t.Errorf("exec in %s through %s: %v", pod, c.M.Name, err)
			}
		}
	}
	// A restart needs the token no more, and the other goes on meanwhile.
	e.must(second.Configure(map[string]string{"datastore-endpoint": endpoint}))
	e.must(e.Stop(e.soon()))
	_, err = second.Kube.CoreV1().ConfigMaps(e.ns).Create(e.soon(),
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "meanwhile"}}, metav1.CreateOptions{})
	e.must(err)
	e.must(second.Stop(e.soon()))
	e.must(second.Start())
	e.must(second.APIReady(e.within(2 * patience)))
	e.must(e.Start())
	e.must(e.APIReady(e.within(2 * patience)))
	_, err = e.Kube.CoreV1().ConfigMaps(e.ns).Get(e.soon(), "meanwhile", metav1.GetOptions{})
	e.must(err)
}

// TestKeysOfServersOnOneDatabase: the keys of Secrets, tokens and authorities of two servers on PostgreSQL are
// replaced.
func TestKeysOfServersOnOneDatabase(t *testing.T) {
	t.Parallel()
	e, second, endpoint, secret := twoOnDatabase(t, "pk1", "pk2")
	e.must(second.Configure(map[string]string{"datastore-endpoint": endpoint, "token": secret}))
	e.must(second.Start())
	e.must(second.Ready(e.within(2 * patience)))

	// A server that is away while keys are rotated has the new ones before it serves.
	const many = 20
	e.manySecrets(many)
	e.must(second.Stop(e.soon()))
	e.rotateKeys(e.Cluster)
	e.must(second.Start())
	e.must(second.APIReady(e.within(2 * patience)))
	e.sameKeys(many, "key2", e.Cluster, second)
	e.rotateKeys(second)
	e.sameKeys(many, "key3", e.Cluster, second)

	e.sub("a token that was rotated away stays in the settings", func(e *env) {
		old := secret
		e.must(second.Configure(map[string]string{"datastore-endpoint": endpoint, "token": old}))
		e.rotatesTokens(e.Cluster, second)
		now, err := os.ReadFile(second.M.Host(cluster.Dirs().ServerToken()))
		if err != nil || strings.TrimSpace(string(now)) == old {
			e.Errorf("the old token is back: %v", err)
		}
		e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
			out, err := second.Umiak(ctx, "status")
			if err == nil && !strings.Contains(out, "was rotated or revoked") {
				err = fmt.Errorf("status does not say that the token in the settings is an old one:\n%s", out)
			}
			return err
		}))
	})
	e.sub("authorities are replaced", func(e *env) {
		e.ctx = e.within(10 * patience)
		e.rotatesAll(nil, e.Cluster, second)
		e.rotateKeys(second)
		e.sameKeys(many, "key4", e.Cluster, second)
	})
}
