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

// UpgradesPlugin is the name of the plugin Upgrades, as in --disable-admission-plugins.
const UpgradesPlugin = "UmiakUpgrades"

// VerbUpgrade is the verb, on Nodes, that who asks a node for an upgrade needs. `patch nodes/status` is given away for
// conditions and the like; this is root on the node.
const VerbUpgrade = "upgrade"

// Upgrades refuses the annotation by which a node is asked for an upgrade to everybody who lacks VerbUpgrade.
type Upgrades struct {
	*admission.Handler
	authorizer authorizer.Authorizer
	off        bool
}

var (
	_ admission.ValidationInterface = (*Upgrades)(nil)
	_ initializer.WantsAuthorizer   = (*Upgrades)(nil)
)

// NewUpgrades makes the plugin. With off nobody may ask.
func NewUpgrades(off bool) *Upgrades {
	return &Upgrades{Handler: admission.NewHandler(admission.Create, admission.Update), off: off}
}

// Name is UpgradesPlugin.
func (*Upgrades) Name() string { return UpgradesPlugin }

// Register adds the plugin to those that an API server can have.
func (u *Upgrades) Register(plugins *admission.Plugins) {
	plugins.Register(UpgradesPlugin, func(io.Reader) (admission.Interface, error) { return u, nil })
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
		return admission.NewForbidden(a, fmt.Errorf("annotation %s: the servers' settings have upgrades in disable", upgrades.AskedFor))
	}
	decision, reason, err := u.authorizer.Authorize(ctx, authorizer.AttributesRecord{
		User: a.GetUserInfo(), Verb: VerbUpgrade, Resource: "nodes", APIVersion: "v1", Name: node.Name, ResourceRequest: true,
	})
	if decision == authorizer.DecisionAllow {
		return nil
	}
	if err != nil {
		reason = err.Error()
	}
	return admission.NewForbidden(a, fmt.Errorf("who sets the annotation %s needs the verb %q on nodes: %s", upgrades.AskedFor, VerbUpgrade, reason))
}
