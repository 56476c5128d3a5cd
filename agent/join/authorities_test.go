package join

import (
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/joinclient"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/nodecerts"
	"github.com/umiak-io/umiak/internal/tunnelwire"
	"github.com/umiak-io/umiak/internal/version"
	serverjoin "github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/pki"
)

// TestReleasesThatDoNotGoTogether: a node that must not work with the server is refused before its token is used; one
// that has joined says so and works on.
func TestReleasesThatDoNotGoTogether(t *testing.T) {
	s := newServer(t)
	once := s.token(t, serverjoin.Spec{SingleUse: true})
	m := newMachine(t, s)
	for release, want := range map[string]string{"v1.99.0+umiak1": "must not be newer",
		"v1.20.0": "minor versions older"} {
		j := m.joiner(t, s, once)
		j.cfg.Version = release
		if _, err := j.Join(t.Context(), n1); !joinclient.IsCode(err, joinwire.BadVersion) ||
			!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), version.Version) {
			t.Errorf("%s: %v", release, err)
		}
	}
	j := m.joiner(t, s, once)
	if _, err := j.Join(t.Context(), n1); err != nil {
		t.Fatal(err)
	}
	j.cfg.Version = "v1.99.0"
	if err := j.renew(t.Context(), joinwire.RenewPath); err != nil {
		t.Errorf("one that has joined: %v", err)
	}
	rows := j.Section(t.Context()).Rows
	if len(rows) < 2 || !strings.Contains(rows[1].Detail+rows[2].Detail, "must not be newer") {
		t.Errorf("status says %+v", rows)
	}
}

// TestANodeTakesOverAuthorities: a node renews its certificates when a server tells it of other authorities, and not
// otherwise.
func TestANodeTakesOverAuthorities(t *testing.T) {
	s := newServer(t)
	m := newMachine(t, s)
	j := m.joiner(t, s, s.token(t, serverjoin.Spec{}))
	if _, err := j.Join(t.Context(), n1); err != nil {
		t.Fatal(err)
	}
	hash := func() string { return tunnelwire.HashAuthorities(s.pki.CAPEM(pki.ServerCA), s.pki.CAPEM(pki.ClientCA)) }
	before := m.cert(t, nodecerts.AgentClient)
	has, since, err := j.Authorities(t.Context(), hash())
	if err != nil || has != hash() || since.IsZero() || !m.cert(t, nodecerts.AgentClient).Equal(before) {
		t.Errorf("the same ones: %s since %v, %v", has, since, err)
	}
	if err := s.pki.BeginRotation(nil, ""); err != nil {
		t.Fatal(err)
	}
	has, _, err = j.Authorities(t.Context(), hash())
	if err != nil || has != hash() || m.cert(t, nodecerts.AgentClient).Equal(before) {
		t.Errorf("other ones: %s, want %s, %v", has, hash(), err)
	}
	// A server that is behind the one that tells it: the node has what it got.
	if has, _, err = j.Authorities(t.Context(), "of the next stage"); err != nil || has != hash() {
		t.Errorf("from a server that is behind: %s, want %s, %v", has, hash(), err)
	}
}

// TestLearn: what the cluster says to a node that joined before is kept and passed on, and an answer that is the same
// costs nothing.
func TestLearn(t *testing.T) {
	dirs := layout.Dirs{Data: t.TempDir(), Run: t.TempDir()}
	j, err := New(Config{Dirs: dirs, Local: "127.0.0.1:6444", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	// as a release without external IPs left it
	old := joinwire.Cluster{APIServer: "https://127.0.0.1:6444", ClusterDomain: "cluster.local"}
	j.adopt(&joined{Node: "n1", Lifetime: 1, Cluster: old})
	_, changed := j.Facts()
	same := old
	same.APIServer = ""
	if err := j.update(same); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dirs.Joined()); err == nil {
		t.Error("the same answer was written down")
	}
	same.ExternalIPs = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	if err := j.update(same); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody hears of it")
	}
	if c, _ := j.Facts(); len(c.ExternalIPs) != 1 || c.APIServer != old.APIServer {
		t.Errorf("%+v", c)
	}
	if last := j.last(); last == nil || len(last.Cluster.ExternalIPs) != 1 {
		t.Errorf("%+v", last)
	}
}
