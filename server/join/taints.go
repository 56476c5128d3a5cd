package join

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/util/retry"

	"github.com/umiak-io/umiak/internal/joinapi"
)

// keyTaints is the record, in the Secret of a node's password, of the taints that the node's settings have given its Node. A node
// may not change its own taints, and cannot write this Secret: so it can take away what its settings gave it, and no other.
const keyTaints = "taints"

// maxTaints is how many taints a node may ask for.
const maxTaints = 32

// taints gives a node the taints of its settings.
func (a *API) taints(ctx context.Context, s *serving, r *http.Request, w http.ResponseWriter) (any, error) {
	name, err := a.identity(r)
	if err != nil {
		return nil, joinapi.Refuse(joinapi.BadIdentity, "%v", err)
	}
	release, err := a.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	var req joinapi.TaintsRequest
	if err := decode(r, w, &req); err != nil {
		return nil, err
	}
	if secret := s.known.node(name); secret == nil || !owns(secret, req.Password) {
		return nil, joinapi.Refuse(joinapi.BadIdentity, "the password is not that of node %s", name)
	}
	if err := checkTaints(req.Taints); err != nil {
		return nil, joinapi.Refuse(joinapi.BadRequest, "%v", err)
	}
	return &joinapi.TaintsResponse{}, s.tokens.SetTaints(ctx, name, req.Taints)
}

func checkTaints(list []corev1.Taint) error {
	if len(list) > maxTaints {
		return fmt.Errorf("%d taints, %d are possible", len(list), maxTaints)
	}
	for _, t := range list {
		if e := append(validation.IsQualifiedName(t.Key), validation.IsValidLabelValue(t.Value)...); len(e) > 0 || t.TimeAdded != nil ||
			!slices.Contains([]corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}, t.Effect) {
			return fmt.Errorf("taint %.200q is not one", t.ToString())
		}
	}
	return nil
}

// SetTaints gives a Node the taints of the node's settings, and takes away those that the settings gave it earlier and do not
// name any more. What others have set stays.
func (t Tokens) SetTaints(ctx context.Context, name string, want []corev1.Taint) error {
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		secret, err := t.secrets().Get(ctx, name+nodeSuffix, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("read the record of node %s: %w", name, err)
		}
		var had []corev1.Taint
		if raw := secret.Data[keyTaints]; len(raw) > 0 {
			if err := json.Unmarshal(raw, &had); err != nil {
				return fmt.Errorf("read the record of node %s: %w", name, err)
			}
		}
		node, err := t.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("read Node %s: %w", name, err)
		}
		record := func(list []corev1.Taint) error {
			raw, err := json.Marshal(list)
			if err != nil || reflect.DeepEqual(had, list) || len(had) == 0 && len(list) == 0 {
				return err
			}
			secret.Data[keyTaints] = raw
			updated, err := t.secrets().Update(ctx, secret, metav1.UpdateOptions{})
			if err == nil {
				secret, had = updated, list
			}
			return err
		}
		// The record first: what is broken off in between is taken away later all the same.
		if err := record(union(want, had)); err != nil {
			return err
		}
		if next := mergeTaints(node.Spec.Taints, had, want); !reflect.DeepEqual(next, node.Spec.Taints) {
			node.Spec.Taints = next
			if _, err := t.Client.CoreV1().Nodes().Update(ctx, node, metav1.UpdateOptions{}); err != nil {
				return err
			}
		}
		return record(want)
	})
	if err != nil {
		return fmt.Errorf("set the taints of node %s: %w", name, err)
	}
	return nil
}

// union is a, and what b has besides.
func union(a, b []corev1.Taint) []corev1.Taint {
	out := slices.Clone(a)
	for _, t := range b {
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

// mergeTaints returns the taints that a Node is to have: those that are there, without those of had that want does not name,
// and with those of want.
func mergeTaints(there, had, want []corev1.Taint) []corev1.Taint {
	var out []corev1.Taint
	for _, t := range there {
		plain := corev1.Taint{Key: t.Key, Value: t.Value, Effect: t.Effect}
		replaced := slices.ContainsFunc(want, func(w corev1.Taint) bool { return w.MatchTaint(&t) && w.Value != t.Value })
		if replaced || slices.Contains(had, plain) && !slices.Contains(want, plain) {
			continue
		}
		out = append(out, t)
	}
	for _, w := range want {
		if !slices.ContainsFunc(out, func(t corev1.Taint) bool { return t.MatchTaint(&w) }) {
			out = append(out, w)
		}
	}
	return out
}
