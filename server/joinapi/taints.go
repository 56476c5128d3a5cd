package joinapi

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

	"github.com/umiak-io/umiak/internal/joinwire"
)

// keyTaints is the record, in the Secret of a node's password, of the taints that the node's settings have given its
// Node. A node may not change its own taints, and cannot write this Secret: so it can take away what its settings
// gave it, and no other.
const keyTaints = "taints"

// maxTaints bounds the taints that a node may request.
const maxTaints = 32

// taints gives a node the taints of its settings.
func (a *API) taints(ctx context.Context, s *serving, r *http.Request, w http.ResponseWriter) (any, error) {
	var req joinwire.TaintsRequest
	name, release, err := a.member(ctx, r, w, &req)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := a.checkOwner(ctx, s, name, req.Password); err != nil {
		return nil, err
	}
	if err := checkTaints(req.Taints); err != nil {
		return nil, joinwire.Refuse(joinwire.BadRequest, "%v", err)
	}
	return &joinwire.TaintsResponse{}, s.tokens.SetTaints(ctx, name, req.Taints)
}

func checkTaints(list []corev1.Taint) error {
	if len(list) > maxTaints {
		return fmt.Errorf("%d taints, %d are possible", len(list), maxTaints)
	}
	for _, t := range list {
		if e := append(validation.IsQualifiedName(t.Key), validation.IsValidLabelValue(t.Value)...); len(e) > 0 ||
			t.TimeAdded != nil ||
			!slices.Contains([]corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule,
				corev1.TaintEffectNoExecute}, t.Effect) {
			return fmt.Errorf("taint %.200q is not one", t.ToString())
		}
	}
	return nil
}

// SetTaints gives a Node the taints of the node's settings, and takes away those that the settings gave it earlier
// and do not name any more. What others have set stays: a node has only what its calls have added, or what the Node
// had of the settings at the first one, with which its kubelet has registered it.
func (t Tokens) SetTaints(ctx context.Context, name string, want []corev1.Taint) error {
	var begun *taintRecord // what was recorded before this call; a conflict has the rest of the call done again
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		secret, err := t.secrets().Get(ctx, name+nodeSuffix, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("read the record of node %s: %w", name, err)
		}
		now, err := recordOf(secret)
		if err != nil {
			return fmt.Errorf("read the record of node %s: %w", name, err)
		}
		if begun == nil {
			first := now
			begun = &first
		}
		node, err := t.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("read Node %s: %w", name, err)
		}
		next, own := mergeTaints(node.Spec.Taints, *begun, want)
		record := func(list []corev1.Taint) error {
			if now.exists && slices.Equal(now.taints, list) {
				return nil
			}
			raw, err := json.Marshal(append([]corev1.Taint{}, list...)) // [] and not null
			if err != nil {
				return fmt.Errorf("encode the taints of node %s: %w", name, err)
			}
			secret.Data[keyTaints] = raw
			updated, err := t.secrets().Update(ctx, secret, metav1.UpdateOptions{})
			if err == nil {
				secret, now = updated, taintRecord{exists: true, taints: list}
			}
			return err
		}
		// The record first: what is broken off in between is taken away later all the same.
		if err := record(union(own, begun.taints)); err != nil {
			return err
		}
		if !reflect.DeepEqual(next, node.Spec.Taints) {
			node.Spec.Taints = next
			if _, err := t.Client.CoreV1().Nodes().Update(ctx, node, metav1.UpdateOptions{}); err != nil {
				return err
			}
		}
		return record(own)
	})
	if err != nil {
		return fmt.Errorf("set the taints of node %s: %w", name, err)
	}
	return nil
}

// taintRecord is the value of keyTaints; it does not exist before the first call of SetTaints.
type taintRecord struct {
	exists bool
	taints []corev1.Taint
}

func recordOf(secret *corev1.Secret) (r taintRecord, err error) {
	raw, ok := secret.Data[keyTaints]
	if !ok {
		return r, nil
	}
	r.exists = true
	return r, json.Unmarshal(raw, &r.taints)
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

// mergeTaints returns the taints that a Node is to have, and those of them that are the settings' own: what had
// records of those that are there goes where want does not name it; want comes in where nobody else has set a taint
// of that key and effect. Before there is a record the settings own what they name.
func mergeTaints(there []corev1.Taint, had taintRecord, want []corev1.Taint) (next, own []corev1.Taint) {
	for _, t := range there {
		plain := corev1.Taint{Key: t.Key, Value: t.Value, Effect: t.Effect}
		i := slices.IndexFunc(want, func(w corev1.Taint) bool { return w.MatchTaint(&t) })
		switch ours := slices.Contains(had.taints, plain) || !had.exists && i >= 0; {
		case !ours:
		case i < 0 || want[i] != plain:
			continue // it goes, or comes with another value
		default:
			own = append(own, plain)
		}
		next = append(next, t)
	}
	for _, w := range want {
		if !slices.ContainsFunc(next, func(t corev1.Taint) bool { return t.MatchTaint(&w) }) {
			next, own = append(next, w), append(own, w)
		}
	}
	return next, own
}
