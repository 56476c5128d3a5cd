package controlplane

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	apicompatibility "k8s.io/apiserver/pkg/util/compatibility"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/component-base/featuregate"
	aggregator "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"github.com/umiak-io/umiak/internal/componentflags"
)

// CheckArgs returns what is wrong with the users' flags of the three components. It starts nothing, and reads no file
// of umiak's; it sets the process's feature gates, as New does.
func CheckArgs(s Settings) error {
	quiet, health := slog.New(slog.DiscardHandler), &Health{}
	api, errA := newAPIServer(s, health, quiet)
	kcm, errK := newControllerManager(s, api, health, quiet)
	sched, errS := newScheduler(s, health, quiet)
	err := errors.Join(errA, errK, errS, checkGates("kube-apiserver-arg", s.APIServerArgs),
		checkGates("kube-controller-manager-arg", s.ControllerManagerArgs),
		checkGates("kube-scheduler-arg", s.SchedulerArgs))
	if err != nil {
		return err
	}
	// What follows asks for gates; with the same flags New sets them the same way.
	if err := apicompatibility.DefaultComponentGlobalsRegistry.Set(); err != nil {
		return fmt.Errorf("set feature gates: %w", err)
	}
	return errors.Join(api.complete(), kcm.check(), sched.check())
}

// checkGates returns what is wrong with the feature gates of a component, which all share one set.
func checkGates(key string, args []string) error {
	gate, ok := apicompatibility.DefaultComponentGlobalsRegistry.FeatureGateFor(basecompatibility.DefaultKubeComponent).(featuregate.MutableVersionedFeatureGate)
	if !ok {
		return nil
	}
	for _, a := range args {
		name, value, _ := componentflags.Split(a)
		// with a component's name in it, upstream checks it later
		if name != "feature-gates" || strings.Contains(value, ":") {
			continue
		}
		if err := gate.DeepCopy().Set(value); err != nil {
			return fmt.Errorf("%s: feature-gates: %w", key, err)
		}
	}
	return nil
}

// complete returns what upstream finds wrong with the options only when it starts.
func (a *APIServer) complete() error {
	o := a.opts
	var errs []error
	for _, list := range [][]error{o.GenericServerRunOptions.Validate(), o.Metrics.Validate(),
		o.APIEnablement.Validate(legacyscheme.Scheme, apiextensions.Scheme, aggregator.Scheme),
		o.Authorization.Validate(), o.Admission.Validate(), o.Audit.Validate(), o.Features.Validate(),
		o.Authentication.Validate()} {
		errs = append(errs, list...)
	}
	if len(errs) > 0 {
		return fmt.Errorf("kube-apiserver-arg: %w", utilerrors.NewAggregate(errs))
	}
	return a.decideAnonymous()
}

// check returns what upstream finds wrong with the options only when it starts. What is in a file of config is looked
// at then.
func (c *Scheduler) check() error {
	o := c.opts
	errs := slices.Concat(o.SecureServing.Validate(), o.Authentication.Validate(), o.Authorization.Validate(),
		o.Metrics.Validate())
	if len(errs) > 0 {
		return fmt.Errorf("kube-scheduler-arg: %w", utilerrors.NewAggregate(errs))
	}
	return nil
}
