package imageshare

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/wellknown"
)

const app = "registry.test/app"

// layer is larger than what is read ahead.
func layer(seed byte) []byte { return bytes.Repeat([]byte{seed, 1, 2, 3, 4, 5, 6}, 100_000) }

func TestServing(t *testing.T) {
	l := newLab(t)
	srv, ag := l.add("srv", true), l.add("ag", false)
	body := layer(1)
	d := srv.store.image(app+":1", body)
	blob := digest.FromBytes(body)
	ag.store.image(app+":1", body)
	for _, c := range []struct {
		to           *node
		method, path string
		part         string
		status       int
		size         int64
	}{
		{srv, "GET", "/v2/", "", 200, 2},
		{srv, "HEAD", "/v2/app/manifests/1?ns=registry.test", "", 200, -2},
		{srv, "GET", "/v2/app/manifests/1?ns=registry.test", "", 200, -2},
		{srv, "GET", "/v2/app/manifests/" + string(d) + "?ns=registry.test", "", 200, -2},
		{srv, "HEAD", "/v2/app/blobs/" + string(blob) + "?ns=registry.test", "", 200, int64(len(body))},
		{srv, "GET", "/v2/app/blobs/" + string(blob) + "?ns=registry.test", "", 200, int64(len(body))},
		{srv, "GET", "/v2/app/blobs/" + string(blob) + "?ns=registry.test", "bytes=300000-", 206,
			int64(len(body)) - 300000},
		{srv, "GET", "/v2/app/blobs/" + string(blob) + "?ns=registry.test", "bytes=5-7", 206, 3},
		{srv, "GET", "/v2/app/blobs/" + string(blob) + "?ns=registry.test", "bytes=99999999-", 416, -2},
		{ag, "GET", "/v2/app/blobs/" + string(blob) + "?ns=registry.test", "", 200, int64(len(body))},

		// An agent says of no tag what it stands for.
		{ag, "HEAD", "/v2/app/manifests/1?ns=registry.test", "", 404, -2},
		{ag, "GET", "/v2/app/manifests/1?ns=registry.test", "", 404, -2},
		// What is not there, is no manifest, or is not asked in the form.
		{srv, "GET", "/v2/app/manifests/2?ns=registry.test", "", 404, -2},
		{srv, "GET", "/v2/app/manifests/1?ns=other.test", "", 404, -2},
		{srv, "GET", "/v2/app/manifests/" + string(blob) + "?ns=registry.test", "", 404, -2},
		{srv, "GET", "/v2/app/blobs/" + sum + "?ns=registry.test", "", 404, -2},
		{srv, "GET", "/v2/app/blobs/" + string(blob), "", 404, -2},
		{srv, "GET", "/v2/app/tags/list?ns=registry.test", "", 404, -2},
		{srv, "GET", "/v2/_catalog?ns=registry.test", "", 404, -2},
		{srv, "GET", "/etc/passwd", "", 404, -2},
		{srv, "POST", "/v2/app/blobs/maxUploads/?ns=registry.test", "", 405, -2},
		{srv, "DELETE", "/v2/app/manifests/1?ns=registry.test", "", 405, -2},
	} {
		from := ag
		if c.to == ag {
			from = srv
		}
		resp, got := l.get(from, c.to, c.method, c.path, c.part)
		if resp.StatusCode != c.status || c.size > -2 && resp.ContentLength != c.size {
			t.Errorf("%s %s %s: %s, %d bytes", c.method, c.path, c.part, resp.Status, resp.ContentLength)
		}
		if c.status < 300 && strings.Contains(c.path, "manifests") &&
			(resp.Header.Get("Docker-Content-Digest") != string(d) || resp.Header.Get("Content-Type") == "") {
			t.Errorf("%s %s: %v", c.method, c.path, resp.Header)
		}
		if c.part == "bytes=300000-" && got != string(body[300000:]) {
			t.Error("the range is another")
		}
		if c.status >= 400 && c.status != 416 && resp.Header.Get("Docker-Content-Digest") != "" {
			t.Errorf("%s %s: an error with a digest", c.method, c.path)
		}
	}
}

func TestWhoIsRefused(t *testing.T) {
	l := newLab(t)
	srv, ag := l.add("srv", true), l.add("ag", false)
	try := func(cert *tls.Certificate) error {
		cfg := &tls.Config{InsecureSkipVerify: true} // the stranger does not care
		if cert != nil {
			cfg.Certificates = []tls.Certificate{*cert}
		}
		tr := &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet,
			fmt.Sprintf("https://%s/v2/", netip.AddrPortFrom(srv.addr, uint16(l.port))), nil)
		resp, err := tr.RoundTrip(r)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
	agent := l.clientCA.issue(t, wellknown.AgentUserPrefix+"ag", wellknown.AgentsGroup).tls(t)
	if err := try(agent); err != nil {
		t.Fatal(err)
	}
	for what, cert := range map[string]*tls.Certificate{
		"nobody":           nil,
		"a user":           l.clientCA.issue(t, "alice", "users").tls(t),
		"an administrator": l.clientCA.issue(t, "admin", "system:masters").tls(t),
		"a group alone":    l.clientCA.issue(t, "alice", wellknown.AgentsGroup).tls(t),
		"a name alone":     l.clientCA.issue(t, wellknown.AgentUserPrefix+"ag", "users").tls(t),
		"a stranger":       l.clientCA.issue(t, wellknown.AgentUserPrefix+"gone", wellknown.AgentsGroup).tls(t),
		"another CA":       newAuthority(t).issue(t, wellknown.AgentUserPrefix+"ag", wellknown.AgentsGroup).tls(t),
		"the servers' CA":  l.serverCA.issue(t, wellknown.AgentUserPrefix+"ag", wellknown.AgentsGroup).tls(t),
	} {
		if err := try(cert); err == nil {
			t.Errorf("%s is let in", what)
		}
	}
	// A node that is deleted is a stranger.
	srv.Remove("ag")
	if err := try(agent); err == nil {
		t.Error("a deleted node is let in")
	}
	// One node does not pass for another.
	ag.Set(object("third", srv.addr.String(), true))
	if _, err := ag.request(t.Context(), http.MethodHead, "third",
		want{registry: "r", repository: "x", kind: blobs, digest: sum}, ""); err == nil ||
		!strings.Contains(err.Error(), "is not node third") {
		t.Errorf("srv passes for another node: %v", err)
	}
	// New certificates are used at once.
	l.clientCA = newAuthority(t)
	l.clientCA.save(t, srv.cfg.PKI, "client-ca")
	srv.Set(object("ag", ag.addr.String(), false))
	if err := try(agent); err == nil {
		t.Error("the former CA is trusted")
	}
	if err := try(l.clientCA.issue(t, wellknown.AgentUserPrefix+"ag", wellknown.AgentsGroup).tls(t)); err != nil {
		t.Error(err)
	}
}

func TestPullWithoutRegistry(t *testing.T) {
	l := newLab(t)
	srv, one, two := l.add("srv", true), l.add("one", false), l.add("two", false)
	none := nobody(t)
	body := layer(1)
	d := srv.store.image(app+":1", body)
	byDigest := app + "@" + string(d)

	got, raw, err := one.pull(t.Context(), none, app+":1")
	if err != nil || got != d || !bytes.Equal(raw, body) {
		t.Fatalf("by tag: %s, %v", got, err)
	}
	if _, _, err := one.pull(t.Context(), none, byDigest); err != nil {
		t.Fatalf("by digest: %v", err)
	}
	// An agent has another image under a tag: nobody believes it, but takes the content.
	other := one.store.image(app+":2", layer(2))
	if _, _, err := two.pull(t.Context(), none, app+":2"); err == nil ||
		!strings.Contains(err.Error(), "connection refused") {
		t.Errorf("an agent's tag: %v", err)
	}
	if _, _, err := two.pull(t.Context(), none, app+"@"+string(other)); err != nil {
		t.Errorf("an agent's content: %v", err)
	}
	// The server is off.
	one.store.image(app+":1", body)
	srv.end()
	if _, _, err := two.pull(t.Context(), none, byDigest); err != nil {
		t.Errorf("without the server: %v", err)
	}
	if _, _, err := two.pull(t.Context(), none, app+":1"); err == nil {
		t.Error("a tag without the server")
	}
	if c := &one.count; c.given.Load() == 0 || one.count.taken.Load() == 0 {
		t.Error("nothing was counted")
	}
	if s := two.Section(t.Context()); len(s.Rows) != 1 ||
		!strings.Contains(s.Rows[0].Detail, "2 nodes; gave 0 blobs (0 MB), took 6 (1 MB)") {
		t.Errorf("status: %+v", s)
	}
}

func TestTheRegistrySaysWhatANameIs(t *testing.T) {
	l := newLab(t)
	srv, ag := l.add("srv", true), l.add("ag", false)
	theirs, ours := newMemory(), layer(1)
	d := srv.store.image(app+":1", ours)
	secret := srv.store.image(app+":secret", layer(3))
	newer := theirs.image(app+":1", layer(2))
	h := newHandler(theirs, func() bool { return true }, &counters{})
	var asked sync.Map
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Method+" "+r.URL.Path, true)
		r.URL.RawQuery = "ns=registry.test"
		h.ServeHTTP(w, r)
	}))
	defer reg.Close()
	r := registries{reg.URL}

	got, _, err := ag.pull(t.Context(), r, app+":1")
	if err != nil || got != newer {
		t.Fatalf("%s, %v", got, err)
	}
	// What the registry does not give is not given by others either, tag or digest.
	for _, ref := range []string{app + ":secret", app + "@" + string(secret), app + "@" + string(d)} {
		if _, _, err := ag.pull(t.Context(), r, ref); err == nil {
			t.Errorf("%s is given", ref)
		}
	}
	// The same content comes from the neighbour.
	srv.store.image(app+":as-imported", layer(2))
	asked.Clear()
	if _, _, err := ag.pull(t.Context(), r, app+":1"); err != nil {
		t.Fatal(err)
	}
	asked.Range(func(k, _ any) bool {
		if s := k.(string); strings.HasPrefix(s, "GET ") && s != "GET /v2/" {
			t.Errorf("the registry was asked: %s", s)
		}
		return true
	})
}

func TestABadNeighbour(t *testing.T) {
	l := newLab(t)
	srv, bad, good := l.add("srv", true), l.add("bad", false), l.add("good", false)
	body := layer(1)
	d := good.store.image(app+":1", body)
	blob := digest.FromBytes(body)
	bad.store.image(app+":1", body)
	bad.store.pulled("registry.test", "app", d, blob)
	bad.store.swap(blob, layer(9)) // a rotten disk
	bad.store.swap(d, append(bytes.Clone(good.store.blobs[d]), ' '))
	// It is asked first.
	srv.Set(object("bad", bad.addr.String(), false, app))
	srv.Set(object("good", good.addr.String(), false))
	none := nobody(t)
	for try := 0; ; try++ {
		_, got, err := srv.pull(t.Context(), none, app+"@"+string(d))
		if err == nil && bytes.Equal(got, body) {
			break
		}
		if try == 2 {
			t.Fatalf("again and again: %v", err)
		}
	}
	// A blob that is removed while it is read: the rest comes from another.
	bad.store.swap(blob, body)
	bad.store.cutAt(300_000)
	srv.Remove("bad")
	srv.Set(object("bad", bad.addr.String(), false))
	srv.nodes.avoidNode("good", true)
	p := &puller{share: srv.Share, registry: "registry.test"}
	p.hosts, _ = none.Hosts("", nil)
	w := want{registry: "registry.test", repository: "app", kind: blobs, digest: blob}
	resp := p.content(t.Context(), w, "")
	if resp == nil {
		t.Fatal("nobody has it")
	}
	var head bytes.Buffer
	_, err := head.ReadFrom(resp.Body)
	_ = resp.Body.Close()
	if err == nil || !strings.Contains(err.Error(), "unexpected EOF") || head.Len() == 0 ||
		!bytes.HasPrefix(body, head.Bytes()) {
		t.Fatalf("%d bytes, %v", head.Len(), err)
	}
	if c := srv.nodes.candidates(app, false, false); len(c) != 0 {
		t.Fatalf("it is not put avoidance: %v", c)
	}
	srv.Remove("good")
	srv.Set(object("good", good.addr.String(), false))
	resp = p.content(t.Context(), w, fmt.Sprintf("bytes=%d-", head.Len()))
	if resp == nil || resp.StatusCode != http.StatusPartialContent {
		t.Fatalf("the rest: %v", resp)
	}
	if _, err := head.ReadFrom(resp.Body); err != nil || !bytes.Equal(head.Bytes(), body) {
		t.Errorf("the rest: %d bytes, %v", head.Len(), err)
	}
	_ = resp.Body.Close()
}

func TestBusy(t *testing.T) {
	l := newLab(t)
	srv, ag := l.add("srv", true), l.add("ag", false)
	body := layer(1)
	srv.store.image(app+":1", body)
	blob := digest.FromBytes(body)
	srv.store.hold = make(chan struct{})
	p := &puller{share: ag.Share, registry: "registry.test"}
	p.hosts, _ = nobody(t).Hosts("", nil)
	w := want{registry: "registry.test", repository: "app", kind: blobs, digest: blob}
	var held []*http.Response
	for range maxUploads {
		resp, busy := p.once(t.Context(), w, "", false)
		if resp == nil || busy {
			t.Fatalf("upload %d: %v, %v", len(held), resp, busy)
		}
		held = append(held, resp)
	}
	if resp, busy := p.once(t.Context(), w, "", false); resp != nil || !busy {
		t.Fatalf("one too many: %v, %v", resp, busy)
	}
	if resp, _ := l.get(ag, srv, "GET", "/v2/app/blobs/"+string(blob)+"?ns=registry.test",
		""); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("busy is %s", resp.Status)
	}
	// Whoever waits gets it.
	got := make(chan *http.Response)
	var answered atomic.Bool
	go func() { got <- p.content(t.Context(), w, ""); answered.Store(true) }()
	eventually.True(t, "three refusals", func() bool { return srv.count.refused.Load() >= 3 })
	if answered.Load() {
		t.Error("the ninth was given at once")
	}
	close(srv.store.hold)
	for _, r := range held {
		_ = r.Body.Close()
	}
	resp := <-got
	if resp == nil {
		t.Fatal("gave up")
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil || !bytes.Equal(b.Bytes(), body) {
		t.Errorf("%d bytes, %v", b.Len(), err)
	}
	_ = resp.Body.Close()
	// A pull that is given up does not wait.
	srv.store.hold = nil
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("given up"))
	if resp := p.content(ctx, w, ""); resp != nil {
		t.Error("a pull that was given up is answered")
	}
}

func TestCandidates(t *testing.T) {
	n := newNeighbours("me")
	kept := &v1.Node{}
	whole := object("n1", "10.0.0.1", false)
	whole.Labels = map[string]string{"a": "b"}
	whole.Status.Addresses = append(whole.Status.Addresses, v1.NodeAddress{Type: v1.NodeHostName, Address: "n1"})
	whole.Status.Images = []v1.ContainerImage{{Names: []string{app + "@" + sum, app + ":1"}},
		{Names: []string{"r:5000/x:2"}}}
	kept.Status.Addresses = whole.Status.Addresses
	n.Keep(whole, kept)
	again := &v1.Node{}
	again.Status.Addresses = kept.Status.Addresses
	n.Keep(kept, again)
	if len(again.Labels) != 0 || len(again.Status.Images) != 1 ||
		strings.Join(again.Status.Images[0].Names, " ") != app+" r:5000/x" {
		t.Errorf("kept: %+v", again)
	}
	again.Name = "n1"
	n.Set(again)
	if h, _ := n.get("n1"); len(h.addrs) != 1 {
		t.Errorf("addresses: %v", h.addrs)
	}
	n.Set(object("me", "10.0.0.9", true, app))
	n.Set(object("srv", "10.0.0.2", true))
	n.Set(object("10.0.0.2", "10.0.0.3", true, app)) // a name that reads as an address
	n.Set(object("nowhere", "", false, app))
	for i := range 100 {
		n.Set(object(fmt.Sprintf("x%d", i), "10.0.1.1", false))
	}
	c := n.candidates(app, false, false)
	if len(c) != 2+maxRandom || c[0].name != "n1" || c[1].name != "srv" {
		t.Errorf("%d, first %v", len(c), c[:2])
	}
	if c := n.candidates(app, true, false); len(c) != 1 || c[0].name != "srv" {
		t.Errorf("servers: %v", c)
	}
	n.avoidNode("n1", false)
	if c := n.candidates(app, false, true); c[0].name != "n1" {
		t.Errorf("in need: %v", c[0])
	}
	n.answered("n1")
	if c := n.candidates(app, false, false); c[0].name != "n1" {
		t.Errorf("it has answered: %v", c[0])
	}
	n.avoidNode("n1", true)
	n.avoidNode("n1", false)
	n.answered("n1")
	if c := n.candidates(app, false, true); c[0].name != "srv" {
		t.Errorf("in need of one that gave what was not asked for: %v", c[0])
	}
	if c := n.candidates(app, false, false); c[0].name != "srv" {
		t.Errorf("put avoidance: %v", c[0])
	}
	n.Set(object("n1", "10.0.0.7", false, app)) // another address
	if c := n.candidates(app, false, false); c[0].name != "n1" {
		t.Errorf("put avoidance: %v", c[0])
	}
	if !n.selfIsServer() || n.others() != 104 {
		t.Errorf("%v, %d", n.selfIsServer(), n.others())
	}
}

// TestManyAtOnce: more nodes want an image than its only holder gives it to at once.
func TestManyAtOnce(t *testing.T) {
	l := newLab(t)
	srv := l.add("srv", true)
	body := layer(1)
	d := srv.store.image(app+":1", body)
	srv.store.hold = make(chan struct{})
	none := nobody(t)
	const many = 2 * maxUploads
	var all []*node
	for i := range many {
		all = append(all, l.add(fmt.Sprintf("n%d", i), false))
	}
	var wg sync.WaitGroup
	for _, n := range all {
		wg.Go(func() {
			got, raw, err := n.pull(t.Context(), none, app+":1")
			// as a kubelet does: so many handshakes at once overrun this machine
			for try := 0; err != nil && try < 3; try++ {
				got, raw, err = n.pull(t.Context(), none, app+":1")
			}
			if err != nil || got != d || !bytes.Equal(raw, body) {
				t.Errorf("%s: %v", n.name, err)
				return
			}
			n.store.image(app+":1", raw) // and gives it to others from now on
		})
	}
	eventually.True(t, "a refusal of each further node", func() bool { return srv.count.refused.Load() >= many-maxUploads })
	close(srv.store.hold)
	wg.Wait()
}

// TestKeepIsBounded: of a Node that holds as many names of images as an object can, a few are looked at and kept.
func TestKeepIsBounded(t *testing.T) {
	whole, kept := &v1.Node{}, &v1.Node{}
	i := v1.ContainerImage{}
	for k := range 100_000 {
		i.Names = append(i.Names, fmt.Sprintf("r/%d:1", k))
	}
	whole.Status.Images = []v1.ContainerImage{i}
	for k := range 10_000 {
		whole.Status.Addresses = append(whole.Status.Addresses,
			v1.NodeAddress{Type: v1.NodeInternalIP, Address: fmt.Sprintf("198.18.%d.%d", k/250, k%250)})
	}
	n := newNeighbours("me")
	n.Keep(whole, kept)
	if got := len(kept.Status.Images[0].Names); got != maxRepositories {
		t.Errorf("%d repositories are kept", got)
	}
	// Names that say the same again and again are not all looked at: the allocations show it.
	for k := range i.Names {
		i.Names[k] = "r/same:1"
	}
	if got := testing.AllocsPerRun(3, func() { n.Keep(whole, &v1.Node{}) }); got > 10*maxImageNames {
		t.Errorf("%.0f allocations for 100,000 names", got)
	}
	whole.Name = "n1"
	n.Set(whole)
	if h, _ := n.get("n1"); len(h.addrs) != maxAddresses {
		t.Errorf("%d addresses are kept", len(h.addrs))
	}
}

func BenchmarkKeep(b *testing.B) {
	whole := &v1.Node{}
	i := v1.ContainerImage{}
	for k := range 100_000 {
		i.Names = append(i.Names, fmt.Sprintf("r/%d:1", k))
	}
	whole.Status.Images = []v1.ContainerImage{i}
	n := newNeighbours("me")
	for b.Loop() {
		n.Keep(whole, &v1.Node{})
	}
}
