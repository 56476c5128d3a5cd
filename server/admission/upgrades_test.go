package admission

import (
	"context"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	api "k8s.io/kubernetes/pkg/apis/core"

	"github.com/umiak-io/umiak/internal/upgrades"
)

// TestUpgrades: who has the verb may set, change and remove the annotation, nobody else may, and with upgrades off it
// can be removed alone. All else of a Node is not this plugin's business.
func TestUpgrades(t *testing.T) {
	node := func(asked string) *api.Node {
		n := &api.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
		if asked != "" {
			n.Annotations = map[string]string{upgrades.AskedFor: asked}
		}
		return n
	}
	may := authorizer.AuthorizerFunc(func(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string,
		error) {
		if a.GetUser().GetName() == "admin" && a.GetVerb() == verbUpgrade && a.GetResource() == "nodes" &&
			a.GetName() == "n1" {
			return authorizer.DecisionAllow, "", nil
		}
		return authorizer.DecisionNoOpinion, "", nil
	})
	for _, c := range []struct {
		what, who string
		old, now  *api.Node
		off       bool
		refused   string
	}{
		{"another change", "node", node("a"), node("a"), false, ""},
		{"set", "admin", node(""), node("a"), false, ""},
		{"set by who may not", "node", node(""), node("a"), false, `requires the verb "upgrade" on nodes`},
		{"changed", "node", node("a"), node("b"), false, "requires the verb"},
		{"removed", "node", node("a"), node(""), false, "requires the verb"},
		{"created with it", "node", nil, node("a"), false, "requires the verb"},
		{"created without", "node", nil, node(""), false, ""},
		{"set with upgrades off", "admin", node(""), node("a"), true, "upgrades are disabled"},
		{"removed with upgrades off", "admin", node("a"), node(""), true, ""},
	} {
		for _, sub := range []string{"", "status"} {
			u := NewUpgrades(c.off)
			u.SetAuthorizer(may)
			op, old := admission.Create, runtime.Object(nil)
			if c.old != nil {
				op, old = admission.Update, c.old
			}
			a := admission.NewAttributesRecord(c.now, old, api.Kind("Node").WithVersion("v1"), "", "n1",
				api.Resource("nodes").WithVersion("v1"), sub, op, nil, false, &user.DefaultInfo{Name: c.who})
			err := u.Validate(t.Context(), a, nil)
			if (err != nil) != (c.refused != "") || err != nil && !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%s, subresource %q: %v", c.what, sub, err)
			}
		}
	}
}
