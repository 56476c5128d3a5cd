package admission

import (
	"context"
	"errors"
	"fmt"
	"io"

	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	api "k8s.io/kubernetes/pkg/apis/core"

	"github.com/umiak-io/umiak/internal/upgrades"
)

// upgradesPlugin is the name of the plugin Upgrades, as in --disable-admission-plugins.
const upgradesPlugin = "UmiakUpgrades"

// verbUpgrade is the verb on Nodes that is required to request a node's upgrade. The right to patch nodes/status is
// often granted for conditions and the like; an upgrade request amounts to root access on the node.
const verbUpgrade = "upgrade"

// Upgrades refuses the annotation that requests a node's upgrade, unless the user has verbUpgrade.
type Upgrades struct {
	*admission.Handler
	authorizer authorizer.Authorizer
	off        bool
}

var (
	_ admission.ValidationInterface = (*Upgrades)(nil)
	_ initializer.WantsAuthorizer   = (*Upgrades)(nil)
)

// NewUpgrades returns the plugin. If off is true, it refuses all upgrade requests.
func NewUpgrades(off bool) *Upgrades {
	return &Upgrades{Handler: admission.NewHandler(admission.Create, admission.Update), off: off}
}

// Name returns upgradesPlugin.
func (*Upgrades) Name() string { return upgradesPlugin }

// Register adds the plugin to the API server's plugins.
func (u *Upgrades) Register(plugins *admission.Plugins) {
	plugins.Register(upgradesPlugin, func(io.Reader) (admission.Interface, error) { return u, nil })
}

// SetAuthorizer implements initializer.WantsAuthorizer.
func (u *Upgrades) SetAuthorizer(a authorizer.Authorizer) { u.authorizer = a }

// ValidateInitialization implements admission.InitializationValidator.
func (u *Upgrades) ValidateInitialization() error {
	if u.authorizer == nil {
		return errors.New("no authorizer")
	}
	return nil
}

// Validate implements admission.ValidationInterface.
func (u *Upgrades) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != api.Resource("nodes") {
		return nil
	}
	node, ok := a.GetObject().(*api.Node)
	if !ok {
		return nil
	}
	asked := ""
	if old, ok := a.GetOldObject().(*api.Node); ok {
		asked = old.Annotations[upgrades.AskedFor]
	}
	switch wanted, sets := node.Annotations[upgrades.AskedFor]; {
	case wanted == asked:
		return nil
	case sets && u.off:
		return admission.NewForbidden(
			a, fmt.Errorf("annotation %s: upgrades are disabled in the servers' settings (disable)", upgrades.AskedFor))
	}
	decision, reason, err := u.authorizer.Authorize(ctx, authorizer.AttributesRecord{
		User: a.GetUserInfo(), Verb: verbUpgrade, Resource: "nodes", APIVersion: "v1", Name: node.Name,
		ResourceRequest: true,
	})
	if decision == authorizer.DecisionAllow {
		return nil
	}
	if err != nil {
		reason = err.Error()
	}
	return admission.NewForbidden(a, fmt.Errorf("setting the annotation %s requires the verb %q on nodes: %s",
		upgrades.AskedFor, verbUpgrade, reason))
}
