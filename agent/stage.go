package agent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/umiak-io/umiak/agent/host"
)

// stage holds what parts make while the process starts: first the machine, then the node. Everything that reads before
// and after, such as the status, reads it here. Both values stay the same once they are there.
type stage struct {
	log    *slog.Logger
	joined chan struct{} // closed when there is a node

	mu                sync.Mutex
	machine           *host.Machine
	member            *node
	volumeControllers bool // a controller manager in this process has made its volume controllers
}

func newStage(log *slog.Logger) *stage { return &stage{log: log, joined: make(chan struct{})} }

// Machine returns the machine, nil before the part "machine" is ready.
func (s *stage) Machine() *host.Machine {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.machine
}

// Node returns the node, nil before it has joined.
func (s *stage) Node() *node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.member
}

// AwaitNode returns the node once it has joined.
func (s *stage) AwaitNode(ctx context.Context) (*node, error) {
	select {
	case <-s.joined:
		return s.Node(), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait to join a cluster: %w", context.Cause(ctx))
	}
}

// SetMachine is called once.
func (s *stage) SetMachine(m *host.Machine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.machine = m
}

// SetNode is called once.
func (s *stage) SetNode(n *node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.member = n
	s.reclaimCSI()
	close(s.joined)
}

// VolumeControllersMade makes the kubelet take the CSI plugin back, as soon as there is one.
func (s *stage) VolumeControllersMade() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.volumeControllers = true
	s.reclaimCSI()
}

// reclaimCSI is called with the lock held.
func (s *stage) reclaimCSI() {
	if s.member == nil || !s.volumeControllers {
		return
	}
	if err := s.member.kubelet.VolumeControllersMade(); err != nil {
		s.log.Error("CSI drivers cannot register on this node until umiak is restarted", "component", "kubelet", "error", err)
	}
}
