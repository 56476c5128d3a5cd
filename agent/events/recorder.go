package events

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
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/retry"
)

// maxPending bounds the reports that wait for the API server; later ones replace the oldest.
const maxPending = 32

// Recorder collects failures and recoveries of the node's parts. Run turns them into Events.
type Recorder struct {
	node string
	log  *slog.Logger

	mu      sync.Mutex
	pending []report
	wake    chan struct{}
}

// report is the failure of a part, or its recovery.
type report struct {
	part string
	err  error // nil when the part works again
	at   time.Time
}

var _ lifecycle.Reporter = (*Recorder)(nil)

// New returns a Recorder for the Node with this name.
func New(node string, log *slog.Logger) *Recorder {
	return &Recorder{node: node, log: log, wake: make(chan struct{}, 1)}
}

// Failing queues the failure of a part.
func (r *Recorder) Failing(part string, err error) { r.add(report{part, err, time.Now()}) }

// Recovered queues the recovery of a part.
func (r *Recorder) Recovered(part string) { r.add(report{part, nil, time.Now()}) }

func (r *Recorder) add(n report) {
	r.mu.Lock()
	r.pending = append(r.pending, n)
	if len(r.pending) > maxPending {
		r.pending = r.pending[1:]
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *Recorder) next() (report, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.pending) == 0 {
		return report{}, false
	}
	n := r.pending[0]
	r.pending = r.pending[1:]
	return n, true
}

// Run creates an Event for each report, also for those of before, until ctx ends. It tries a failed request again after
// pauses of up to a minute, and drops reports that the API server refuses for good.
func (r *Recorder) Run(ctx context.Context, events typedcore.EventsGetter) {
	for {
		n, ok := r.next()
		if !ok {
			select {
			case <-r.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		var pause retry.Backoff
		for {
			e := n.event(r.node)
			_, err := events.Events(e.Namespace).Create(ctx, e, metav1.CreateOptions{})
			if err == nil || apierrors.IsAlreadyExists(err) { // an answer may have been lost
				break
			}
			if apierrors.IsInvalid(err) || apierrors.IsForbidden(err) {
				r.log.Warn("an Event is refused", "part", n.part, "error", err)
				break
			}
			r.log.Debug("cannot record an Event, trying again", "part", n.part, "error", err)
			if pause.Wait(ctx) != nil {
				return
			}
		}
	}
}

// event returns the Event that `kubectl describe node` shows.
func (n report) event(node string) *corev1.Event {
	at := metav1.NewTime(n.at)
	e := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: fmt.Sprintf("%s.%x", node, n.at.UnixNano())},
		// As in the kubelet's own Events, the UID of the Node is its name.
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node, UID: types.UID(node)},
		Source:         corev1.EventSource{Component: "umiak", Host: node},
		FirstTimestamp: at, LastTimestamp: at, Count: 1,
		Type: corev1.EventTypeNormal, Reason: "PartWorksAgain", Message: n.part + " works again",
	}
	if n.err != nil {
		e.Type, e.Reason = corev1.EventTypeWarning, "PartFailed"
		e.Message = n.part + " does not run and is started again: " + n.err.Error()
		if len(e.Message) > 1024 { // the API's limit
			e.Message = strings.ToValidUTF8(e.Message[:1000], "") + " …"
		}
	}
	return e
}
