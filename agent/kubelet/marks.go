package kubelet

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	kubeletapis "k8s.io/kubelet/pkg/apis"
)

// ParseLabels reads labels as KEY=VALUE. It reports all that are wrong, with the setting node-label.
func ParseLabels(list []string) (map[string]string, error) {
	out := map[string]string{}
	var errs []error
	for _, l := range list {
		k, v, ok := strings.Cut(l, "=")
		if !ok {
			errs = append(errs, fmt.Errorf("node-label: %q has no value: write %s=VALUE, or %s= for an empty one", l, l, l))
			continue
		}
		if old, twice := out[k]; twice && old != v {
			errs = append(errs, fmt.Errorf("node-label: %s stands twice, as %q and as %q", k, old, v))
		}
		out[k] = v
	}
	return out, errors.Join(append(errs, checkLabels("node-label", out))...)
}

// checkLabels returns what is wrong with labels that the kubelet is to give its Node.
func checkLabels(key string, labels map[string]string) error {
	var errs []error
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		for _, e := range validation.IsQualifiedName(k) {
			errs = append(errs, fmt.Errorf("%s: the key %q: %s", key, k, e))
		}
		for _, e := range validation.IsValidLabelValue(labels[k]) {
			errs = append(errs, fmt.Errorf("%s: the value %q of %s: %s", key, labels[k], k, e))
		}
		domain, _, _ := strings.Cut(k, "/")
		if domain == k || kubeletapis.IsKubeletLabel(k) {
			continue
		}
		for _, reserved := range []string{"kubernetes.io", "k8s.io"} {
			if domain == reserved || strings.HasSuffix(domain, "."+reserved) {
				errs = append(errs, fmt.Errorf("%s: Kubernetes lets no node give itself %s; set it with `umiak kubectl label node NAME %s=%s`", key, k, k, labels[k]))
			}
		}
	}
	return errors.Join(errs...)
}

// ParseTaints reads taints as KEY=VALUE:EFFECT or KEY:EFFECT. It reports all that are wrong, with the setting node-taint.
func ParseTaints(list []string) ([]v1.Taint, error) {
	var out []v1.Taint
	var errs []error
	for _, s := range list {
		fail := func(format string, a ...any) {
			errs = append(errs, fmt.Errorf("node-taint: %q: "+format, append([]any{s}, a...)...))
		}
		pair, effect, ok := strings.Cut(s, ":")
		key, value, _ := strings.Cut(pair, "=")
		switch v1.TaintEffect(effect) {
		case v1.TaintEffectNoSchedule, v1.TaintEffectPreferNoSchedule, v1.TaintEffectNoExecute:
		default:
			if !ok {
				fail("it has no effect: write KEY=VALUE:EFFECT, with NoSchedule, PreferNoSchedule or NoExecute as EFFECT")
			} else {
				fail("the effect %q is not one of NoSchedule, PreferNoSchedule, NoExecute", effect)
			}
			continue
		}
		for _, e := range validation.IsQualifiedName(key) {
			fail("the key %q: %s", key, e)
		}
		for _, e := range validation.IsValidLabelValue(value) {
			fail("the value %q: %s", value, e)
		}
		t := v1.Taint{Key: key, Value: value, Effect: v1.TaintEffect(effect)}
		if slices.ContainsFunc(out, func(o v1.Taint) bool { return o.MatchTaint(&t) }) {
			fail("the key and the effect stand twice")
			continue
		}
		out = append(out, t)
	}
	return out, errors.Join(errs...)
}
