package upgrades

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/internal/upgrades"
	"github.com/umiak-io/umiak/internal/wellknown"
)

var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

const v1, v2, id = "v1.37.2+umiak1", "v1.37.2+umiak2", "0123abcd/" + v2 + "/0"

type change func(*corev1.Node)

func node(name, version string, changes ...change) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{},
		Annotations: map[string]string{}}}
	n.Status.NodeInfo.KubeletVersion = version
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	for _, f := range changes {
		f(n)
	}
	return n
}

func server(n *corev1.Node) { n.Labels[wellknown.ServerRole] = "true" }
func down(n *corev1.Node) {
	n.Status.Conditions[0] = corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionFalse,
		Message: "no news"}
}

func note(name string, v any) change {
	return func(n *corev1.Node) {
		raw, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		n.Annotations[name] = string(raw)
	}
}

func requested(id string, ago time.Duration) change {
	return note(upgrades.AskedFor, upgrades.Request{ID: id, Version: v2, Asked: now.Add(-ago)})
}

func answer(id, err string) change {
	return note(upgrades.Answered, upgrades.Answer{ID: id, Version: v2, Error: err, Ended: now})
}

func TestNext(t *testing.T) {
	for name, c := range map[string]struct {
		spec   upgrades.Spec
		self   string
		taken  map[string]string
		nodes  []*corev1.Node
		action Action
		node   string
		phase  upgrades.Phase
		says   string
		done   int
	}{
		"servers first": {nodes: []*corev1.Node{node("a", v1), node("s2", v1, server), node("s1", v1, server)},
			action: Begin, node: "s1", phase: upgrades.Upgrading},
		"the next server": {nodes: []*corev1.Node{node("a", v1), node("s2", v1, server),
			node("s1", v2, server, answer(id, ""))},
			action: Begin, node: "s2", phase: upgrades.Upgrading, done: 1},
		"then agents": {nodes: []*corev1.Node{node("b", v1), node("a", v1), node("s1", v2, server)},
			action: Begin, node: "a", phase: upgrades.Upgrading, done: 1},
		"complete": {nodes: []*corev1.Node{node("a", v2), node("s1", v2, server)},
			phase: upgrades.Complete, says: "2 of 2", done: 2},
		"a node works on it": {nodes: []*corev1.Node{node("a", v1, requested(id, time.Minute)), node("b", v1)},
			node: "a", phase: upgrades.Upgrading, says: "from " + v1},
		"it comes back": {nodes: []*corev1.Node{node("a", v2, requested(id, time.Minute), answer(id, ""),
			down), node("b", v1)}, node: "a", phase: upgrades.Upgrading},
		"it is back": {nodes: []*corev1.Node{node("a", v2, requested(id, time.Minute), answer(id, "")),
			node("b", v1)}, action: Finish, node: "a", phase: upgrades.Upgrading},
		"not yet with the version": {nodes: []*corev1.Node{node("a", v1, requested(id, time.Minute), answer(id, ""))},
			node: "a", phase: upgrades.Upgrading},
		"an answer to another one": {nodes: []*corev1.Node{node("a", v1, requested(id, time.Minute),
			answer("x", "no"))}, node: "a", phase: upgrades.Upgrading},
		"it failed": {nodes: []*corev1.Node{node("a", v1, requested(id, time.Minute),
			answer(id, "no space")), node("b", v1)}, action: Finish, node: "a", phase: upgrades.Upgrading},
		"it has failed": {nodes: []*corev1.Node{node("a", v1, answer(id, "no space")), node("b", v1)},
			node: "a", phase: upgrades.Failed, says: "no space"},
		"it is tried again": {nodes: []*corev1.Node{node("a", v1, answer("before", "no space")), node("b", v1)},
			action: Begin, node: "a", phase: upgrades.Upgrading},
		"no news": {nodes: []*corev1.Node{node("a", v1, requested(id, nodeTimeout), down)}, node: "a",
			phase: upgrades.Failed, says: "has not come back"},
		"no news of another": {nodes: []*corev1.Node{node("a", v1, requested("before", nodeTimeout))},
			action: Begin, node: "a", phase: upgrades.Upgrading},
		"another one is under way": {nodes: []*corev1.Node{node("a", v1, requested("before", 0)), node("b", v1)},
			node: "a", phase: upgrades.Upgrading},
		"a server is down": {nodes: []*corev1.Node{node("s1", v1, server), node("s2", v1, server, down)},
			node: "s2", phase: upgrades.Waiting, says: "no other server is upgraded"},
		"a server outside is down": {spec: upgrades.Spec{NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"x": "y"}}}, nodes: []*corev1.Node{node("s1", v1, server, func(n *corev1.Node) { n.Labels["x"] = "y" }), node("s2", v1, server, down)}, node: "s2", phase: upgrades.Waiting},
		"an agent is away": {nodes: []*corev1.Node{node("a", v1, down), node("b", v1), node("s", v2, server)},
			action: Begin, node: "b", phase: upgrades.Upgrading, done: 1},
		"only those away are left": {nodes: []*corev1.Node{node("a", v1, down), node("b", v2)}, node: "a",
			phase: upgrades.Waiting, says: "a is not ready", done: 1},
		"one fell after its upgrade": {nodes: []*corev1.Node{node("a", v2, down, answer(id, "")), node("b", v1)},
			node: "a", phase: upgrades.Waiting,
			says: "is no longer ready", done: 1},
		"one fell, another's upgrade": {nodes: []*corev1.Node{node("a", v2, down, answer("x", "")), node("b", v1)},
			action: Begin, node: "b", phase: upgrades.Upgrading, done: 1},
		"paused": {spec: upgrades.Spec{Paused: true}, nodes: []*corev1.Node{node("a", v1)},
			phase: upgrades.Paused, says: "a is not upgraded"},
		"paused in the middle": {spec: upgrades.Spec{Paused: true},
			nodes: []*corev1.Node{node("a", v1, requested(id, 0))}, node: "a", phase: upgrades.Upgrading},
		"back a minor version": {nodes: []*corev1.Node{node("a", "v1.38.0+umiak1")}, node: "a",
			phase: upgrades.Failed, says: "is older"},
		"two minor versions": {nodes: []*corev1.Node{node("s", v2, server), node("z", "v1.35.9")}, node: "z",
			phase: upgrades.Failed, says: "go to v1.36 first", done: 1},
		"no version at all": {nodes: []*corev1.Node{node("a", "k3s")}, node: "a", phase: upgrades.Failed},
		"agents before servers": {spec: upgrades.Spec{Version: "v1.38.0",
			NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"x": "y"}}},
			nodes: []*corev1.Node{node("s", v1, server),
				node("a", v1, func(n *corev1.Node) { n.Labels["x"] = "y" })}, node: "s", phase: upgrades.Waiting, says: "no node may be newer"},
		"a server without a node": {spec: upgrades.Spec{Version: "v1.38.0"}, nodes: []*corev1.Node{node("a", v1)},
			phase: upgrades.Waiting, says: "without a node"},
		"nobody": {phase: upgrades.Waiting, says: "no node is selected"},
		"bad version": {spec: upgrades.Spec{Version: "latest"}, nodes: []*corev1.Node{node("a", v1)},
			phase: upgrades.Failed, says: "spec.version"},
		"bad selector": {spec: upgrades.Spec{NodeSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "~"}}}},
			nodes: []*corev1.Node{node("a", v1)}, phase: upgrades.Failed, says: "spec.nodeSelector"},
		"another Upgrade has it": {taken: map[string]string{"a": "lab"}, nodes: []*corev1.Node{node("a", v1)},
			node: "a", phase: upgrades.Failed, says: "Upgrade lab"},
	} {
		t.Run(name, func(t *testing.T) {
			u := &upgrades.Upgrade{ObjectMeta: metav1.ObjectMeta{UID: "0123abcd-9", Generation: 3}, Spec: c.spec}
			if u.Spec.Version == "" {
				u.Spec.Version = v2
			}
			if c.self == "" {
				c.self = v1
			}
			got := Next(u, c.nodes, c.self, c.taken, now)
			name := ""
			if got.Node != nil {
				name = got.Node.Name
			}
			s := got.Status
			if got.Action != c.action || name != c.node || s.Phase != c.phase || !strings.Contains(s.Message, c.says) ||
				s.Node != name {
				t.Errorf("got action %d of %q, %+v", got.Action, name, s)
			}
			if s.Done != c.done || s.ObservedGeneration != 3 {
				t.Errorf("got %+v", s)
			}
			if s.Phase != upgrades.Complete && s.Message == "" {
				t.Error("it does not say why")
			}
		})
	}
}

// TestNextEnds has every node do as it is asked: all of them get there, one at a time, servers first.
func TestNextEnds(t *testing.T) {
	u := &upgrades.Upgrade{ObjectMeta: metav1.ObjectMeta{UID: "0123abcd-9"}, Spec: upgrades.Spec{Version: v2}}
	nodes := []*corev1.Node{node("a", v1), node("b", v1), node("s1", v1, server), node("s2", v1, server)}
	var order []string
	for range 20 {
		step := Next(u, nodes, v1, nil, now)
		switch {
		case step.Status.Phase == upgrades.Complete:
			if got := strings.Join(order, " "); got != "s1 s2 a b" {
				t.Errorf("in the order %s", got)
			}
			return
		case step.Action == Begin:
			order = append(order, step.Node.Name)
			requested(u.ID(), 0)(step.Node)
		case step.Action == Finish:
			delete(step.Node.Annotations, upgrades.AskedFor)
		default:
			step.Node.Status.NodeInfo.KubeletVersion = v2
			answer(u.ID(), "")(step.Node)
		}
	}
	t.Errorf("it does not end: %v", order)
}
