package lifecycle

// Signal wakes one loop. Calls of Set while the loop is busy merge into one.
type Signal chan struct{}

// NewSignal returns a signal that is not set.
func NewSignal() Signal { return make(Signal, 1) }

// Set wakes the loop that receives from s, now or when it receives next. It does not block.
func (s Signal) Set() {
	select {
	case s <- struct{}{}:
	default:
	}
}
