package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// Watcher is the part of a typed client that Until needs.
type Watcher interface {
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

// Until watches until cond holds for an object and returns that object. cond says in words what it sees,
// for the error when ctx ends first. Watches that break are opened again.
func Until[T runtime.Object](ctx context.Context, w Watcher, opts metav1.ListOptions, cond func(T) (bool, string)) (T,
	error) {
	var none T
	seen := "nothing yet"
	opts.ResourceVersion = "" // begins with what is there
	for {
		err := follow(ctx, w, opts, func(e watch.Event) bool {
			o, ok := e.Object.(T)
			if !ok {
				return false
			}
			if e.Type == watch.Deleted {
				seen = "it was deleted"
				return false
			}
			var done bool
			if done, seen = cond(o); done {
				none = o
			}
			return done
		})
		if err == nil {
			return none, nil
		}
		if ctx.Err() != nil {
			var zero T
			return zero, fmt.Errorf("%w after seeing: %s", context.Cause(ctx), seen)
		}
	}
}

// Gone watches until the object that get fetches is no more.
func Gone(ctx context.Context, w Watcher, name string, get func(context.Context) error) error {
	for {
		// The watch is opened before the question is asked, so that nothing falls between the two.
		opts := metav1.ListOptions{FieldSelector: "metadata.name=" + name}
		wi, err := w.Watch(ctx, opts)
		if err == nil {
			if err = get(ctx); apierrors.IsNotFound(err) {
				wi.Stop()
				return nil
			}
			for e := range wi.ResultChan() {
				if e.Type == watch.Deleted {
					wi.Stop()
					return nil
				}
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %s is still there", context.Cause(ctx), name)
		}
		pause(ctx)
	}
}

var errBroken = errors.New("watch ended")

func follow(ctx context.Context, w Watcher, opts metav1.ListOptions, take func(watch.Event) bool) error {
	wi, err := w.Watch(ctx, opts)
	if err != nil {
		pause(ctx)
		return err
	}
	defer wi.Stop()
	for e := range wi.ResultChan() {
		if take(e) {
			return nil
		}
	}
	pause(ctx)
	return errBroken
}

// pause keeps a client from asking a server that is away without end.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(50 * time.Millisecond):
	}
}

// Eventually asks until ask returns nil, for what has no event to watch: whether packets arrive, what a
// file contains. The error is the last answer.
func Eventually(ctx context.Context, ask func(ctx context.Context) error) error {
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last answer: %w", context.Cause(ctx), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
