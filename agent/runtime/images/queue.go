package images

import "sync"

// queue is a FIFO queue of names without duplicates. A name that is added while it is being processed is queued again
// when that is done.
type queue struct {
	mu      sync.Mutex
	more    *sync.Cond
	waiting []string
	busy    map[string]bool
	again   map[string]bool
	closed  bool
}

func newQueue() *queue {
	q := &queue{busy: map[string]bool{}, again: map[string]bool{}}
	q.more = sync.NewCond(&q.mu)
	return q
}

func (q *queue) add(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.busy[name] {
		q.again[name] = true
		return
	}
	for _, n := range q.waiting {
		if n == name {
			return
		}
	}
	q.waiting = append(q.waiting, name)
	q.more.Signal()
}

// next blocks until a name is available. It returns false once the queue is closed.
func (q *queue) next() (string, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) == 0 && !q.closed {
		q.more.Wait()
	}
	if q.closed {
		return "", false
	}
	name := q.waiting[0]
	q.waiting = q.waiting[1:]
	q.busy[name] = true
	return name, true
}

func (q *queue) done(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.busy, name)
	if q.again[name] {
		delete(q.again, name)
		q.waiting = append(q.waiting, name)
		q.more.Signal()
	}
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.more.Broadcast()
}
