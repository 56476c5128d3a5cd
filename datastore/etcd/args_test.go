package etcd

import (
	"strings"
	"testing"
	"time"
)

func TestUsersFlags(t *testing.T) {
	c, apply := newEmbedConfig([]string{"--quota-backend-bytes=4294967296", "heartbeat_interval=200",
		"pre-vote=false", "backend-batch-interval=1s"})
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	if c.QuotaBackendBytes != 4<<30 || c.TickMs != 200 || c.ElectionMs != election || c.PreVote ||
		c.BackendBatchInterval != time.Second || c.SnapshotCount != snapshotEntries || c.MaxWalFiles != 2 {
		t.Errorf("%+v", c)
	}
	for arg, want := range map[string]string{
		"quota-backend-byte=1":              `there is no flag "quota-backend-byte"; did you mean quota-backend-bytes?`,
		"data-dir=/x":                       "data-dir cannot be set: set data-dir",
		"initial-cluster=a=https://x":       "initial-cluster cannot be set: umiak determines it",
		"unsafe-no-fsync":                   "would lose acknowledged writes",
		"listen-metrics-urls=http://x:2381": "set etcd-expose-metrics",
		"heartbeat-interval=soon":           "heartbeat-interval",
		"heartbeat-interval=500":            "election-timeout 1200 is less than five times heartbeat-interval 500",
	} {
		if err := CheckArgs([]string{arg}); err == nil || !strings.Contains(err.Error(), want) ||
			!strings.HasPrefix(err.Error(), "etcd-arg: ") {
			t.Errorf("%s: %v", arg, err)
		}
	}
	if err := CheckArgs(nil); err != nil {
		t.Error(err)
	}
	// A name that etcd does not have would never be refused, and never apply.
	for _, list := range [][]string{tunable, keys(instead)} {
		for _, name := range list {
			if err := CheckArgs([]string{name + "=\x00"}); err != nil && strings.Contains(err.Error(), "there is no flag") {
				t.Error(err)
			}
		}
	}
}

func keys(m map[string]string) (out []string) {
	for k := range m {
		out = append(out, k)
	}
	return out
}
