package joinapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/token"
)

// cluster is what a server says of itself and its cluster.
type cluster struct {
	kind      joinwire.Datastore
	settings  []joinwire.Setting
	admitted  []string
	held      []string // names of members
	withdrawn []string
}

func (c *cluster) Datastore() joinwire.Datastore { return c.kind }
func (c *cluster) Settings() []joinwire.Setting  { return c.settings }
func (c *cluster) Admit(_ context.Context, r *joinwire.ServerRequest) (*joinwire.ServerResponse, error) {
	c.admitted = append(c.admitted, r.Name)
	return &joinwire.ServerResponse{Files: []joinwire.File{{Name: "x", Data: []byte("secret")}}}, nil
}
func (c *cluster) Dismiss(context.Context, string) error { return nil }
func (c *cluster) Check(context.Context, *joinwire.ServerRequest) (*joinwire.ServerResponse, error) {
	return &joinwire.ServerResponse{}, nil
}
func (c *cluster) Holds(name string) bool { return slices.Contains(c.held, name) }
func (c *cluster) Withdraw(_ context.Context, r *joinwire.ServerRequest) error {
	c.withdrawn = append(c.withdrawn, r.Name)
	return nil
}

func TestServersJoin(t *testing.T) {
	c := &cluster{kind: joinwire.Etcd, settings: []joinwire.Setting{{Key: "cluster-cidr", Value: "10.42.0.0/16"},
		{Key: "disable", Value: ""}}}
	tokens := Tokens{Client: fake.NewClientset(), CA: hash}
	srv, _, err := tokens.Create(t.Context(), Spec{Kind: token.Server})
	if err != nil {
		t.Fatal(err)
	}
	agent, _, err := tokens.Create(t.Context(), Spec{Kind: token.Agent})
	if err != nil {
		t.Fatal(err)
	}
	api := New(Config{Servers: c, DNSNames: []string{"kubernetes"}, Log: quiet})
	ctx := t.Context()
	run(t, api, tokens)

	good := joinwire.ServerRequest{Name: "s2", Password: strings.Repeat("p", 30), Datastore: joinwire.Etcd,
		Peer: "10.0.0.2:2380", Settings: c.settings}
	ask := func(tok token.Token, change func(*joinwire.ServerRequest)) (int, string) {
		r := good
		if change != nil {
			change(&r)
		}
		body, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		req := httptest.NewRequest(http.MethodPost, joinwire.ServerPath, strings.NewReader(string(body)))
		req.SetBasicAuth(tok.ID, tok.Secret)
		w := httptest.NewRecorder()
		api.ServeHTTP(w, req)
		return w.Code, w.Body.String()
	}
	for want, change := range map[string]func(*joinwire.ServerRequest){
		"is a name of the API server":            func(r *joinwire.ServerRequest) { r.Name = "kubernetes" },
		"the node password has 1 characters":     func(r *joinwire.ServerRequest) { r.Password = "p" },
		`peer address \"\" is not`:               func(r *joinwire.ServerRequest) { r.Peer = "" },
		`peer address \"127.0.0.1:2380\" is not`: func(r *joinwire.ServerRequest) { r.Peer = "127.0.0.1:2380" },
		`peer address \"x:2380\" is not`:         func(r *joinwire.ServerRequest) { r.Peer = "x:2380" },
		`datastore \"sqlite\" is not one of`:     func(r *joinwire.ServerRequest) { r.Datastore = "sqlite" },
		"leave datastore-endpoint out": func(r *joinwire.ServerRequest) {
			r.Datastore,
				r.Peer = joinwire.External, ""
		},
		`cluster-cidr is \"10.1.0.0/16\" here and \"10.42.0.0/16\"`: func(r *joinwire.ServerRequest) {
			r.Settings = []joinwire.Setting{{Key: "cluster-cidr", Value: "10.1.0.0/16"}, {Key: "disable"}}
		},
		"cluster-cidr is not set here": func(r *joinwire.ServerRequest) { r.Settings = r.Settings[1:] },
		`later is \"x\" here and not set in the cluster`: func(r *joinwire.ServerRequest) {
			r.Settings = append([]joinwire.Setting{{Key: "later", Value: "x"}}, r.Settings...)
		},
	} {
		if code, body := ask(srv, change); code < 400 || !strings.Contains(body, want) {
			t.Errorf("want %s, got %d %s", want, code, body)
		}
	}
	if code, body := ask(agent, nil); code != http.StatusUnauthorized ||
		!strings.Contains(body, "lets agents join, not servers") {
		t.Errorf("an agent's token: %d %s", code, body)
	}
	if len(c.admitted) != 0 {
		t.Fatalf("let in: %q", c.admitted)
	}
	for range 2 { // who has not got the answer asks again
		if code, body := ask(srv, nil); code != http.StatusOK || !strings.Contains(body, `"files"`) {
			t.Errorf("%d %s", code, body)
		}
	}
	if code, body := ask(srv, func(r *joinwire.ServerRequest) {
		r.Password = strings.Repeat("q",
			30)
	}); code != http.StatusForbidden || !strings.Contains(body, "another machine") {
		t.Errorf("another machine under the same name: %d %s", code, body)
	}
	// The first machine never came: after a while another may have the name, unless it is a member's or a node's.
	secrets := tokens.Client.CoreV1().Secrets(Namespace)
	claimed := func(name string, ago time.Duration) {
		t.Helper()
		s := nodeSecret(name, strings.Repeat("p", 30), srv.ID, token.Server)
		s.CreationTimestamp = metav1.NewTime(time.Now().Add(-ago))
		if _, err := secrets.Create(ctx, s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually.True(t, "the API's watch to have the claim", func() bool { return api.ready.Load().known.node(name) != nil })
	}
	// All are younger than registerTimeout: what is older the API frees by itself when it starts.
	for name, ago := range map[string]time.Duration{"old": time.Hour / 2, "young": time.Minute, "member": time.Hour / 2,
		"node": time.Hour / 2} {
		claimed(name, ago)
	}
	c.held = []string{"member"}
	if _, err := tokens.Client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node"}},
		metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"old": http.StatusOK, "young": http.StatusForbidden,
		"member": http.StatusForbidden, "node": http.StatusForbidden} {
		code, body := ask(srv, func(r *joinwire.ServerRequest) { r.Name, r.Password = name, strings.Repeat("q", 30) })
		if code != want {
			t.Errorf("another machine as %s: %d %s", name, code, body)
		}
	}
	// A join that is refused after the member was made takes it back, and claims no name.
	single, _, err := tokens.Create(ctx, Spec{Kind: token.Server, SingleUse: true})
	if err != nil {
		t.Fatal(err)
	}
	eventually.Nil(t, "a new token to be accepted", func() error {
		if code, body := ask(single, func(r *joinwire.ServerRequest) { r.Name = "s3" }); code != http.StatusOK {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	if code, body := ask(single, func(r *joinwire.ServerRequest) { r.Name = "s4" }); code != http.StatusUnauthorized {
		t.Errorf("a used token: %d %s", code, body)
	}
	if _, err := secrets.Get(ctx, "s4"+nodeSuffix, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a join that was refused has claimed its name: %v", err)
	}
	if slices.Contains(c.admitted, "s4") && !slices.Contains(c.withdrawn, "s4") {
		t.Error("a join that was refused has left its member")
	}
	c.kind = ""
	if _, body := ask(srv, nil); !strings.Contains(body, "--cluster-init") {
		t.Errorf("a cluster on SQLite: %s", body)
	}
	c.kind = joinwire.External
	if _, body := ask(srv, nil); !strings.Contains(body, "set datastore-endpoint to the same one") {
		t.Errorf("a cluster on a database: %s", body)
	}
}
