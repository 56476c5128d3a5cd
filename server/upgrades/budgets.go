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
	// hinderedAgain is when pods are looked at again: of them only the budgets are watched.
	hinderedAgain = 15 * time.Second
	// drainTime is how long pods may take to leave.
	drainTime = 10 * time.Minute
)

// hindered says why the pods of a node do not allow that it is taken away, or nothing. A node that is upgraded keeps its
// pods, but a new version that fails may not.
func (w *worker) hindered(ctx context.Context, u *upgrades.Upgrade, n *corev1.Node) (string, error) {
	if u.Spec.IgnoreDisruptionBudgets {
		return "", nil
	}
	budgets, err := w.budgets.List(labels.Everything())
	if err != nil || len(budgets) == 0 {
		return "", err
	}
	pods, err := w.cfg.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", n.Name).String()})
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
	return fmt.Sprintf("%s waits for a PodDisruptionBudget that allows no disruption: %s", n.Name, strings.Join(all, ", ")), nil
}

// counts leaves out pods that no budget protects.
func counts(p *corev1.Pod) bool {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.DeletionTimestamp != nil {
		return false
	}
	o := metav1.GetControllerOf(p)
	return o == nil || o.Kind != "DaemonSet" && o.Kind != "Node"
}

// drain moves the pods of a node away, by eviction, and notes on the Node that it is to be given back.
func (w *worker) drain(ctx context.Context, u *upgrades.Upgrade, n *corev1.Node) error {
	if !n.Spec.Unschedulable { // or somebody else has done it, and it stays
		if err := w.annotate(ctx, n, map[string]any{upgrades.Drained: u.ID()}, map[string]any{"unschedulable": true}); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	h := &drain.Helper{ // no Force: a pod that nothing would make again is not ended unasked
		Ctx: ctx, Client: w.cfg.Client, IgnoreAllDaemonSets: true, DeleteEmptyDirData: true, GracePeriodSeconds: -1,
		Timeout: drainTime, DisableEviction: u.Spec.IgnoreDisruptionBudgets, Out: io.Discard, ErrOut: io.Discard,
	}
	if err := drain.RunNodeDrain(h, n.Name); err != nil {
		return fmt.Errorf("drain %s: %w", n.Name, err)
	}
	return nil
}
