package upgrades

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/umiak-io/umiak/internal/upgrades"
	umiakversion "github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// nodeTimeout bounds the upgrade of one node. When it is exceeded, the Upgrade fails.
const nodeTimeout = 30 * time.Minute

// Action is the action of a Step.
type Action int

// Actions of a Step.
const (
	Wait   Action = iota // the status says for what
	Begin                // start the upgrade of Step.Node
	Finish               // the upgrade of Step.Node has ended: remove the request, uncordon
)

// Step is the next step of an Upgrade.
type Step struct {
	Action Action
	Node   *corev1.Node
	Status upgrades.Status
	Again  time.Duration // time until the next look without an event; 0 means none
}

// Next decides the next step of one Upgrade. self is this server's version; taken maps nodes to other Upgrades that
// select them.
func Next(u *upgrades.Upgrade, nodes []*corev1.Node, self string, taken map[string]string, now time.Time) Step {
	p := planner{u: u, id: u.ID(), self: self, now: now}
	step := p.next(nodes, taken)
	step.Status.ObservedGeneration = u.Generation
	if step.Node != nil {
		step.Status.Node = step.Node.Name
	}
	step.Status.Done, step.Status.Nodes = p.done, p.all
	return step
}

type planner struct {
	u         *upgrades.Upgrade
	id, self  string
	now       time.Time
	done, all int
}

func (p *planner) next(nodes []*corev1.Node, taken map[string]string) Step {
	target, err := umiakversion.Minor(p.u.Spec.Version)
	if err != nil {
		return failed(nil, "spec.version: %v", err)
	}
	if _, err := metav1.LabelSelectorAsSelector(p.u.Spec.NodeSelector); err != nil {
		return failed(nil, "spec.nodeSelector: %v", err)
	}
	selected := inOrder(Selected(p.u, nodes))
	if p.all = len(selected); p.all == 0 {
		return waiting(nil, "no node is selected")
	}
	// Check all nodes first: one that cannot be upgraded is found before any is changed.
	var rest, under []*corev1.Node
	for _, n := range selected {
		r, requested := request(n)
		if version(n) == p.u.Spec.Version && !requested {
			p.done++
			continue
		}
		if requested && (r.ID == p.id || p.now.Sub(r.Asked) < nodeTimeout) {
			under = append(under, n)
			continue
		}
		rest = append(rest, n)
		if other := taken[n.Name]; other != "" {
			return failed(n, "node %s is selected by Upgrade %s as well", n.Name, other)
		}
		if step, ok := p.allowed(n, target); !ok {
			return step
		}
	}
	for _, n := range under {
		if step, over := checkRequested(n, p.now); over {
			return step
		}
	}
	if len(under) > 0 { // one at a time
		n := under[0]
		r, _ := request(n)
		message := fmt.Sprintf("%s goes from %s to %s", n.Name, version(n), r.Version)
		if version(n) == r.Version {
			message = fmt.Sprintf("%s runs %s and is not ready yet", n.Name, r.Version)
		}
		return Step{Node: n, Again: r.Asked.Add(nodeTimeout).Sub(p.now),
			Status: upgrades.Status{Phase: upgrades.Upgrading, Message: message}}
	}
	if len(rest) == 0 {
		return Step{Status: upgrades.Status{Phase: upgrades.Complete,
			Message: fmt.Sprintf("%d of %d nodes run %s", p.done, p.all, p.u.Spec.Version)}}
	}
	if p.u.Spec.Paused {
		return Step{Status: upgrades.Status{Phase: upgrades.Paused,
			Message: fmt.Sprintf("%s: spec.paused is set", count(rest, "is not upgraded", "are not upgraded"))}}
	}
	return p.choose(nodes, selected, rest, target)
}

// allowed reports whether a node's version permits the upgrade to the target; if not, it returns the failed step.
func (p *planner) allowed(n *corev1.Node, target int) (Step, bool) {
	if a, ok := upgrades.Annotation[upgrades.Answer](n.Annotations, upgrades.Answered); ok && a.ID == p.id &&
		a.Error != "" {
		return failed(n, "%s: %s; no other node is changed. Increase spec.attempt to try again", n.Name, a.Error), false
	}
	from, err := umiakversion.Minor(version(n))
	switch {
	case err != nil:
		return failed(n, "%s does not run umiak: %v", n.Name, err), false
	case target < from:
		return failed(n, "%s runs %s, and %s is older: an older version cannot read its state", n.Name, version(n),
			p.u.Spec.Version), false
	case target > from+1:
		return failed(n, "%s runs %s, and %s is more than one minor version ahead: go to v1.%d first", n.Name,
			version(n), p.u.Spec.Version, from+1), false
	}
	return Step{}, true
}

// checkRequested returns the step for a node whose upgrade was requested; over is false while the node works on it.
func checkRequested(n *corev1.Node, now time.Time) (Step, bool) {
	r, _ := request(n)
	a, _ := upgrades.Annotation[upgrades.Answer](n.Annotations, upgrades.Answered)
	switch {
	case a.ID == r.ID && (a.Error != "" || version(n) == r.Version && ready(n)):
		// A failed node is uncordoned as well; its answer stays, and the next step evaluates it.
		return Step{Action: Finish, Node: n, Status: upgrades.Status{Phase: upgrades.Upgrading, Message: n.Name +
			" has answered"}}, true
	case now.Sub(r.Asked) >= nodeTimeout:
		return failed(
			n, "%s has not come back with %s in %s (%s): see `umiak status` and /var/lib/umiak/agent/upgrade/log there; no other node is changed. Increase spec.attempt to try again",
			n.Name, r.Version, nodeTimeout, cmp.Or(readiness(n), "no message")), true
	}
	return Step{}, false
}

// choose selects the node to upgrade next.
func (p *planner) choose(all, selected, rest []*corev1.Node, target int) Step {
	for _, n := range selected {
		if a, ok := upgrades.Annotation[upgrades.Answer](n.Annotations, upgrades.Answered); ok && a.ID == p.id &&
			!ready(n) {
			return waiting(
				n, "%s, which was upgraded at %s, is no longer ready (%s): no other node is changed. Increase spec.attempt to continue without it",
				n.Name, a.Ended.UTC().Format(time.RFC3339), readiness(n))
		}
	}
	for _, n := range all {
		if !isServer(n) {
			continue
		}
		if !ready(n) && isServer(rest[0]) {
			return waiting(n, "server %s is not ready (%s); no other server is upgraded meanwhile", n.Name,
				readiness(n))
		}
		if m, err := umiakversion.Minor(version(n)); err == nil && m < target && !isServer(rest[0]) {
			return waiting(n, "server %s runs %s, and no node may be newer than a server", n.Name, version(n))
		}
	}
	// A server without a node is only visible here while it leads.
	if m, err := umiakversion.Minor(p.self); err == nil && m < target && !isServer(rest[0]) {
		return waiting(nil, "a server without a node runs %s, and no node may be newer: run `umiak upgrade` there",
			p.self)
	}
	var away []*corev1.Node
	for _, n := range rest {
		if ready(n) {
			return Step{Action: Begin, Node: n, Status: upgrades.Status{Phase: upgrades.Upgrading,
				Message: fmt.Sprintf("%s is asked to go from %s to %s", n.Name, version(n), p.u.Spec.Version)}}
		}
		away = append(away, n)
	}
	return waiting(away[0], "%s: upgraded when there again", count(away, "is not ready", "are not ready"))
}

// Selected returns the nodes of an Upgrade. An invalid selector selects none.
func Selected(u *upgrades.Upgrade, nodes []*corev1.Node) []*corev1.Node {
	sel := labels.Everything()
	if u.Spec.NodeSelector != nil {
		var err error
		if sel, err = metav1.LabelSelectorAsSelector(u.Spec.NodeSelector); err != nil {
			return nil
		}
	}
	return slices.DeleteFunc(slices.Clone(nodes),
		func(n *corev1.Node) bool { return !sel.Matches(labels.Set(n.Labels)) })
}

func failed(n *corev1.Node, format string, args ...any) Step {
	return Step{Node: n, Status: upgrades.Status{Phase: upgrades.Failed, Message: fmt.Sprintf(format, args...)}}
}

func waiting(n *corev1.Node, format string, args ...any) Step {
	return Step{Node: n, Status: upgrades.Status{Phase: upgrades.Waiting, Message: fmt.Sprintf(format, args...)}}
}

// count names up to three nodes, with a verb: "a is", "a, b, c and 7 more are".
func count(nodes []*corev1.Node, one, more string) string {
	if len(nodes) == 1 {
		return nodes[0].Name + " " + one
	}
	var names []string
	for _, n := range nodes[:min(3, len(nodes))] {
		names = append(names, n.Name)
	}
	s := strings.Join(names, ", ")
	if left := len(nodes) - len(names); left > 0 {
		s += fmt.Sprintf(" and %d more", left)
	}
	return s + " " + more
}

func compare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

func isServer(n *corev1.Node) bool  { _, ok := n.Labels[wellknown.ServerRole]; return ok }
func version(n *corev1.Node) string { return n.Status.NodeInfo.KubeletVersion }

// request returns the upgrade request on a node.
func request(n *corev1.Node) (upgrades.Request, bool) {
	return upgrades.Annotation[upgrades.Request](n.Annotations, upgrades.AskedFor)
}

func isRequested(n *corev1.Node) bool { _, ok := request(n); return ok }

func ready(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// readiness returns the message of a node's Ready condition.
func readiness(n *corev1.Node) string {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Message
		}
	}
	return ""
}
