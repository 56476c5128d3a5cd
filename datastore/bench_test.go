package datastore_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/umiak-io/umiak/internal/testing/storetest"
)

// BenchmarkCreate measures creates of a 1 KiB value through the etcd API.
func BenchmarkCreate(b *testing.B) {
	for _, clients := range []int{1, 32} {
		for _, tier := range []string{"durable", "volatile"} {
			b.Run(fmt.Sprintf("%s/clients=%d", tier, clients), func(b *testing.B) {
				s, stop := start(b, b.TempDir())
				endpoint := s.Endpoint()
				if tier == "volatile" {
					endpoint = s.VolatileEndpoint()
				}
				c := dial(b, endpoint)
				value := string(make([]byte, 1024))
				var next atomic.Int64
				var wg sync.WaitGroup
				b.ResetTimer()
				for range clients {
					wg.Add(1)
					go func() {
						defer wg.Done()
						for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
							if rev, err := storetest.Create(context.Background(), c,
								fmt.Sprintf("/registry/configmaps/default/cm-%d", i), value); err != nil || rev == 0 {
								b.Errorf("revision %d, %v", rev, err)
								return
							}
						}
					}()
				}
				wg.Wait()
				b.StopTimer()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
				stop()
			})
		}
	}
}
