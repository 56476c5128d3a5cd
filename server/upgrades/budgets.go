package upgrades

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/kubectl/pkg/drain"

	"github.com/umiak-io/umiak/internal/upgrades"
)

const (
	// budgetRetry is the pause before pods are checked again: only the budgets are watched.
	budgetRetry = 15 * time.Second
	// drainTimeout bounds the drain of a node.
	drainTimeout = 10 * time.Minute
)

// blockedBy returns which disruption budgets forbid the upgrade of a node, "" if none does. Pods keep running during an
// upgrade, but a new version that fails could end them.
func (w *worker) blockedBy(ctx context.Context, u *upgrades.Upgrade, n *corev1.Node) (string, error) {
	if u.Spec.IgnoreDisruptionBudgets {
		return "", nil
	}
	budgets, err := w.budgets.List(labels.Everything())
	if err != nil || len(budgets) == 0 {
		return "", err
	}
	pods, err := w.client.CoreV1().Pods("").List(ctx,
		metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", n.Name).String()})
	if err != nil {
		return "", fmt.Errorf("list pods of %s: %w", n.Name, err)
	}
	var all []string
	for _, b := range budgets {
		sel, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil || b.Status.DisruptionsAllowed > 0 && b.Status.ObservedGeneration >= b.Generation {
			continue
		}
		for _, p := range pods.Items {
			if p.Namespace == b.Namespace && counts(&p) && sel.Matches(labels.Set(p.Labels)) {
				all = append(all, b.Namespace+"/"+b.Name+" for pod "+p.Name)
				break
			}
		}
	}
	if len(all) == 0 {
		return "", nil
	}
	return fmt.Sprintf("%s waits for a PodDisruptionBudget that allows no disruption: %s", n.Name,
		strings.Join(all, ", ")), nil
}

// counts reports whether budgets apply to a pod.
func counts(p *corev1.Pod) bool {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.DeletionTimestamp != nil {
		return false
	}
	o := metav1.GetControllerOf(p)
	return o == nil || o.Kind != "DaemonSet" && o.Kind != "Node"
}

// drain evicts the pods of a node, and records on the Node that it must be uncordoned later.
func (w *worker) drain(ctx context.Context, u *upgrades.Upgrade, n *corev1.Node) error {
	if !n.Spec.Unschedulable { // otherwise someone else has cordoned it, and it stays so
		if err := w.annotate(ctx, n, map[string]any{upgrades.Drained: u.ID()},
			map[string]any{"unschedulable": true}); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	h := &drain.Helper{ // no Force: do not evict pods that no controller would replace
		Ctx: ctx, Client: w.client, IgnoreAllDaemonSets: true, DeleteEmptyDirData: true, GracePeriodSeconds: -1,
		Timeout: drainTimeout, DisableEviction: u.Spec.IgnoreDisruptionBudgets, Out: io.Discard, ErrOut: io.Discard,
	}
	if err := drain.RunNodeDrain(h, n.Name); err != nil {
		return fmt.Errorf("drain %s: %w", n.Name, err)
	}
	return nil
}
