package etcd

import (
	"context"
	"reflect"
	"time"
	"unsafe"

	"go.etcd.io/etcd/client/pkg/v3/types"
)

// RemoveStaleAt exports removeStaleAt.
func (s *Server) RemoveStaleAt(ctx context.Context, first map[uint64]time.Time, now time.Time) {
	s.removeStaleAt(ctx, first, now)
}

// StartTimeout exports startTimeout.
const StartTimeout = startTimeout

// MarkLost makes etcd's transport take a connected member for lost, as when a message to its former address fails late.
func (s *Server) MarkLost(id uint64) {
	peers := reflect.ValueOf(s.transport).Elem().FieldByName("peers")
	status := peers.MapIndex(reflect.ValueOf(types.ID(id))).Elem().Elem().FieldByName("status").Elem()
	for name, value := range map[string]any{"active": false, "since": time.Time{}} {
		f := status.FieldByName(name)
		reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem().Set(reflect.ValueOf(value))
	}
}
