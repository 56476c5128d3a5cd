package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/machine"
)

// serverOn makes a machine on the server's network that is to be another server.
func (e *env) serverOn(l *machine.LAN, name string, settings map[string]string) *cluster.Cluster {
	e.Helper()
	return off(e.T, cluster.Options{Name: name, LAN: l, Settings: settings}).Cluster
}

// joinServer starts a server by the line that the first one prints, and waits until it serves.
func (e *env) joinServer(c *cluster.Cluster) {
	e.Helper()
	line := strings.Fields(e.token("--kind", "server", "--print-join-command", "--single-use"))
	if len(line) != 6 || line[1] != "server" {
		e.Fatalf("the line to join is %q", line)
	}
	e.must(c.Start(line[2:]...))
	e.must(c.Ready(e.within(2 * patience)))
}

// TestThreeServers: servers and agents join by one line each and are one cluster.
func TestThreeServers(t *testing.T) {
	t.Parallel()
	l := lan(t)
	e := own(t, cluster.Options{Name: "s1", LAN: l, Settings: map[string]string{"cluster-init": "true"}}).ready()
	s2, s3 := e.serverOn(l, "s2", nil), e.serverOn(l, "s3", nil)
	e.joinServer(s2)
	e.joinServer(s3)
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		for _, c := range []*cluster.Cluster{e.Cluster, s2, s3} {
			out, err := c.Umiak(ctx, "status")
			if err != nil || strings.Count(out, "follower") != 2 || strings.Count(out, "leader") != 1 {
				return fmt.Errorf("status of %s: %w\n%s", c.M.Name, errors.Join(err), out)
			}
		}
		return nil
	}))
}
