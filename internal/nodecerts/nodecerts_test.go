package nodecerts

import (
	"slices"
	"testing"
)

// TestIdentities has the users and groups that Kubernetes' authorizers and Umiak's roles expect.
func TestIdentities(t *testing.T) {
	for name, c := range map[string]struct {
		got, want Identity
	}{
		"kubelet": {Kubelet("n1"), Identity{File: "kubelet-client", User: "system:node:n1", Groups: []string{"system:nodes"}}},
		"serving": {Serving("n1"), Identity{File: "kubelet-serving", User: "system:node:n1",
			Groups: []string{"system:nodes"}, Serving: true}},
		"agent": {Agent("n1"), Identity{File: "agent-client", User: "umiak:agent:n1", Groups: []string{"umiak:agents"}}},
	} {
		if c.got.File != c.want.File || c.got.User != c.want.User || !slices.Equal(c.got.Groups, c.want.Groups) ||
			c.got.Serving != c.want.Serving {
			t.Errorf("%s: %+v, want %+v", name, c.got, c.want)
		}
		if s := c.got.Subject(); s.CommonName != c.want.User || !slices.Equal(s.Organization, c.want.Groups) ||
			len(s.ToRDNSequence()) != 2 {
			t.Errorf("%s: subject %s", name, s)
		}
	}
}

// TestIdentitiesShareNothing: the files are apart, and a change of one identity's groups changes no other's.
func TestIdentitiesShareNothing(t *testing.T) {
	files := map[string]bool{ServerCA: true, ClientCA: true}
	for _, id := range []Identity{Kubelet("n1"), Serving("n1"), Agent("n1")} {
		if files[id.File] {
			t.Errorf("two have the file %s", id.File)
		}
		files[id.File] = true
	}
	changed := Kubelet("n1")
	changed.Groups[0] = "system:masters"
	if got := Kubelet("n1").Groups[0]; got != "system:nodes" {
		t.Errorf("the group of nodes became %s", got)
	}
}
