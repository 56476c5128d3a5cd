package etcd

import (
	"context"
	"reflect"
	"time"
	"unsafe"

	"go.etcd.io/etcd/client/pkg/v3/types"
)

// RemoveStaleAt is for tests.
func (s *Server) RemoveStaleAt(ctx context.Context, first map[uint64]time.Time, now time.Time) {
	s.removeStaleAt(ctx, first, now)
}

// StartLimit is for tests.
const StartLimit = startLimit

// Forsake has etcd's transport hold a member for lost whose connections stand, as when a message to an address that it has
// left fails late.
func (s *Server) Forsake(id uint64) {
	peers := reflect.ValueOf(s.transport).Elem().FieldByName("peers")
	status := peers.MapIndex(reflect.ValueOf(types.ID(id))).Elem().Elem().FieldByName("status").Elem()
	for name, value := range map[string]any{"active": false, "since": time.Time{}} {
		f := status.FieldByName(name)
		reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem().Set(reflect.ValueOf(value))
	}
}
