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

// parseLabels parses labels of the form KEY=VALUE. Its error lists all invalid ones and names the setting node-label.
func parseLabels(list []string) (map[string]string, error) {
	out := map[string]string{}
	var errs []error
	for _, l := range list {
		k, v, ok := strings.Cut(l, "=")
		if !ok {
			errs = append(
				errs, fmt.Errorf("node-label: %q has no value: write %s=VALUE, or %s= for an empty one", l, l, l))
			continue
		}
		if old, twice := out[k]; twice && old != v {
			errs = append(errs, fmt.Errorf("node-label: %s is set twice, to %q and to %q", k, old, v))
		}
		out[k] = v
	}
	return out, errors.Join(append(errs, checkLabels("node-label", out))...)
}

// checkLabels validates labels that the kubelet sets on its Node. key is the setting for the error.
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
				errs = append(
					errs, fmt.Errorf("%s: Kubernetes does not let a node set %s on itself; use `umiak kubectl label node NAME %s=%s`", key, k, k, labels[k]))
			}
		}
	}
	return errors.Join(errs...)
}

// parseTaints parses taints of the form KEY=VALUE:EFFECT or KEY:EFFECT. Its error lists all invalid ones and names the
// setting node-taint.
func parseTaints(list []string) ([]v1.Taint, error) {
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
				fail(
					"it has no effect: write KEY=VALUE:EFFECT, with NoSchedule, PreferNoSchedule or NoExecute as EFFECT")
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
			fail("key and effect are set twice")
			continue
		}
		out = append(out, t)
	}
	return out, errors.Join(errs...)
}
