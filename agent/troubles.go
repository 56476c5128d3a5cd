package agent

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/umiak-io/umiak/internal/lifecycle"
)

// maxTroubles is how many failures wait for the API server at most; later ones replace the oldest.
const maxTroubles = 32

// troubles collects the failures of the node's parts and records them as Events of the Node once it has joined.
type troubles struct {
	mu   sync.Mutex
	list []trouble
	wake chan struct{}
}

// trouble is one failure, or the end of one.
type trouble struct {
	part string
	err  error // nil when the part works again
	at   time.Time
}

var _ lifecycle.Reporter = (*troubles)(nil)

func newTroubles() *troubles { return &troubles{wake: make(chan struct{}, 1)} }

// Failing takes a failure.
func (t *troubles) Failing(part string, err error) { t.add(trouble{part, err, time.Now()}) }

// Recovered takes the end of a failure.
func (t *troubles) Recovered(part string) { t.add(trouble{part, nil, time.Now()}) }

func (t *troubles) add(n trouble) {
	t.mu.Lock()
	t.list = append(t.list, n)
	if len(t.list) > maxTroubles {
		t.list = t.list[1:]
	}
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *troubles) first() (trouble, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.list) == 0 {
		return trouble{}, false
	}
	n := t.list[0]
	t.list = t.list[1:]
	return n, true
}

// Run records what has been collected, and what comes, with create until ctx ends. What cannot be recorded is tried
// again with pauses of up to a minute.
func (t *troubles) Run(ctx context.Context, create func(context.Context, *corev1.Event) error, node string, log *slog.Logger) error {
	policy := *lifecycle.Restart(lifecycle.Part{}, lifecycle.Policy{}).Restart
	for {
		n, ok := t.first()
		if !ok {
			select {
			case <-t.wake:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		for tries := 1; ; tries++ {
			err := create(ctx, n.event(node))
			if err == nil || apierrors.IsAlreadyExists(err) { // an answer may have been lost
				break
			}
			if apierrors.IsInvalid(err) || apierrors.IsForbidden(err) {
				log.Warn("an Event is refused", "part", n.part, "error", err)
				break
			}
			log.Debug("cannot record an Event, trying again", "part", n.part, "error", err)
			select {
			case <-time.After(policy.Pause(tries)):
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// event is what `kubectl describe node` shows.
func (n trouble) event(node string) *corev1.Event {
	at := metav1.NewTime(n.at)
	e := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: fmt.Sprintf("%s.%x", node, n.at.UnixNano())},
		// The kubelet's own Events name the Node so: its UID is its name.
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node, UID: types.UID(node)},
		Source:         corev1.EventSource{Component: "umiak", Host: node},
		FirstTimestamp: at, LastTimestamp: at, Count: 1,
		Type: corev1.EventTypeNormal, Reason: "PartWorksAgain", Message: n.part + " works again",
	}
	if n.err != nil {
		e.Type, e.Reason, e.Message = corev1.EventTypeWarning, "PartFailed", n.part+" does not run and is started again: "+n.err.Error()
		if len(e.Message) > 1024 { // the API's limit
			e.Message = strings.ToValidUTF8(e.Message[:1000], "") + " …"
		}
	}
	return e
}
