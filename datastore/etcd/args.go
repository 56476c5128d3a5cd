package etcd

import (
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/umiak-io/umiak/internal/componentflags"
)

// argsKey is the setting that holds Config.Args.
const argsKey = "etcd-arg"

// tunable are the flags of etcd that users may set. The others name files, addresses and members, which umiak
// determines, are not read by an etcd in another process, or lose data.
var tunable = []string{
	"heartbeat-interval", "election-timeout", "initial-election-tick-advance", "pre-vote", "strict-reconfig-check",
	"snapshot-count", "snapshot-catchup-entries", "max-snapshots", "max-wals",
	"quota-backend-bytes", "backend-bbolt-freelist-type", "backend-batch-interval", "backend-batch-limit",
	"bootstrap-defrag-threshold-megabytes", "memory-mlock",
	"max-txn-ops", "max-request-bytes", "max-learners",
	"grpc-keepalive-min-time", "grpc-keepalive-interval", "grpc-keepalive-timeout",
	"auto-compaction-mode", "auto-compaction-retention", "compaction-batch-limit", "compaction-sleep-interval",
	"corrupt-check-time", "compact-hash-check-time", "watch-progress-notify-interval", "downgrade-check-time",
	"warning-apply-duration", "warning-unary-request-duration", "tls-min-version", "tls-max-version", "metrics",
	embed.ServerFeatureGateFlagName,
}

// instead is what to do instead of setting a flag that is not tunable, where there is something better to say.
var instead = map[string]string{
	"data-dir":            "set data-dir",
	"name":                "set node-name",
	"listen-metrics-urls": "set etcd-expose-metrics",
	"log-level":           "set log-level",
	"log-format":          "set log-format",
	"log-outputs":         "set log",
	"enable-pprof":        "set enable-pprof",
	"force-new-cluster":   "set cluster-reset, once",
	"unsafe-no-fsync":     "a power cut would lose acknowledged writes",
}

// newEmbedConfig returns a configuration with umiak's values for what users may change, and a function that applies
// their flags, which is to be called when all other fields are set.
func newEmbedConfig(args []string) (_ *embed.Config, apply func() error) {
	c := embed.NewConfig()
	fs := pflag.NewFlagSet(argsKey, pflag.ContinueOnError)
	if len(args) > 0 { // it writes to fields, and to variables of other packages
		flags := flag.NewFlagSet(argsKey, flag.ContinueOnError)
		flags.SetOutput(io.Discard)
		c.AddFlags(flags)
		fs.AddGoFlagSet(flags)
	}
	c.TickMs, c.ElectionMs = heartbeat, election
	c.BackendBatchInterval = commitInterval
	c.BackendFreelistType = "map"
	c.SnapshotCount, c.SnapshotCatchUpEntries = snapshotEntries, catchUpEntries
	c.MaxWalFiles, c.MaxSnapFiles = 2, 2
	c.QuotaBackendBytes = quota
	if strconv.IntSize == 32 {
		// The whole file is mapped: etcd adds a tenth to the quota and bbolt rounds up to the next power of two, out
		// of an address space of 2 or 3 GiB.
		c.QuotaBackendBytes = 448 << 20
	}
	c.MaxLearners = 3
	return c, func() error {
		refused := func(name, _ string) string {
			if fs.Lookup(name) == nil || slices.Contains(tunable, name) {
				return ""
			}
			if text := instead[name]; text != "" {
				return text
			}
			return "umiak determines it"
		}
		if err := componentflags.Set(fs, argsKey, args, refused); err != nil {
			return err
		}
		if c.ElectionMs < 5*c.TickMs { // etcd would refuse it at its start
			return fmt.Errorf("%s: election-timeout %d is less than five times heartbeat-interval %d", argsKey, c.ElectionMs,
				c.TickMs)
		}
		return nil
	}
}

// CheckArgs returns what is wrong with users' flags for etcd.
func CheckArgs(args []string) error {
	_, apply := newEmbedConfig(args)
	return apply()
}
