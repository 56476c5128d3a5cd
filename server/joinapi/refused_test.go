package joinapi

import (
	"errors"
	"path/filepath"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/umiak-io/umiak/internal/token"
)

// TestAStartThatWritesNothing: where all is as it should be, a server starts although every write is refused, as by a
// webhook whose pod runs on this very node.
func TestAStartThatWritesNothing(t *testing.T) {
	client := fake.NewClientset()
	tokens := Tokens{Client: client, CA: hash}
	l := LongLived{ID: AgentID, Kind: token.Agent, File: filepath.Join(t.TempDir(), "agent-token")}
	refused := false
	client.PrependReactor("*", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if refused && a.GetVerb() != "get" && a.GetVerb() != "list" {
			return true, nil, errors.New(`failed calling webhook "hook.example.com"`)
		}
		return false, nil, nil
	})
	start := func() error {
		_, err := tokens.Ensure(t.Context(), l, quiet)
		_, taken := tokens.Reserve(t.Context(), "n", "password", nil)
		return errors.Join(err, taken)
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	refused = true
	if err := start(); err != nil {
		t.Errorf("the second start: %v", err)
	}
	if _, err := tokens.Reserve(t.Context(), "n", "another's", nil); err == nil {
		t.Error("what has to be written is not tried")
	}
}
