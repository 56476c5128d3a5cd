package joinapi

import (
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"

	"github.com/umiak-io/umiak/internal/wellknown"
)

// TestNamesOfServers: names in the certificates of all servers are no node's, however they are written.
func TestNamesOfServers(t *testing.T) {
	tokens := Tokens{Client: fake.NewClientset(), CA: hash}
	known, stop, err := tokens.follow(t.Context(), func() {}, newMembers(""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	publish := func(server string, list ...string) {
		t.Helper()
		if err := tokens.PublishNames(t.Context(), server, list); err != nil {
			t.Fatal(err)
		}
	}
	publish("s1", "s1.example.org")
	publish("s1", "API.example.org", "*.apps.example.org")
	publish("s2", "plain", "s2")
	want := []string{"*.apps.example.org", "API.example.org", "plain", "s2"}
	sorted := func(but string) []string { return slices.Sorted(slices.Values(known.serverNames(but))) }
	for end := time.Now().Add(10 * time.Second); !slices.Equal(sorted(""), want); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the API knows of %q", sorted(""))
		}
	}
	for name, refused := range map[string]bool{
		"api.example.org": true, "console.apps.example.org": true, "plain": true, "s2": true,
		"apps.example.org": false, "a.console.apps.example.org": false, "plainer": false, "example.org": false,
	} {
		if err := checkName(name, strings.Repeat("p", 32), known.serverNames("")); (err != nil) != refused {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := plain([]string{"API.example.org", "*.apps.example.org", "plain"}); !slices.Equal(got, []string{"plain"}) {
		t.Errorf("who has joined is refused to renew as %q", got)
	}
	if slices.Contains(sorted("s2"), "s2") {
		t.Error("a server that joins again is refused its own name")
	}
	if err := tokens.WithdrawNames(t.Context(), "s2"); err != nil {
		t.Error(err)
	}
	if err := tokens.WithdrawNames(t.Context(), "s2"); err != nil {
		t.Errorf("again: %v", err)
	}
}

// TestWasServer: a Node without the servers' label takes no member out of the cluster when it is deleted.
func TestWasServer(t *testing.T) {
	node := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	if wasServer(node) {
		t.Error("an agent's Node passes for a server's")
	}
	node.Labels = map[string]string{wellknown.ServerRole: "true"}
	if !wasServer(node) || !wasServer(cache.DeletedFinalStateUnknown{Obj: node}) {
		t.Error("a server's Node passes for an agent's")
	}
}
