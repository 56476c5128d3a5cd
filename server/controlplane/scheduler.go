package controlplane

import (
	"context"
	"fmt"
	"log/slog"

	"k8s.io/client-go/tools/cache"
	"k8s.io/component-base/configz"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

// Scheduler is kube-scheduler.
type Scheduler struct {
	log   *slog.Logger
	opts  *options.Options
	port  metricsPort
	state running
	idle  string // state while it does not run, which is as it should be where another server leads
}

func newScheduler(s Settings, health *Health, log *slog.Logger) (*Scheduler, error) {
	c := &Scheduler{log: log.With("component", "kube-scheduler"), opts: options.NewOptions()}
	if !s.HighAvailability {
		c.idle = "does not run"
	}
	c.state.set(c.idle)
	health.Register("kube-scheduler", c.state.check)
	err := parse(*c.opts.Flags, schedulerFlags(s), "kube-scheduler-arg", s.SchedulerArgs, ownedByScheduler)
	if !given(s.SchedulerArgs, metricFlags...) {
		c.opts.Metrics = nil
	}
	c.port = newMetricsPort(c.opts.SecureServing)
	return c, err
}

// schedulerFlags returns the flags that Umiak sets.
func schedulerFlags(s Settings) flags {
	var f flags
	f.set("kubeconfig", s.Files.SchedulerKubeconfig)
	f.setMetricsPort(s.SchedulerArgs, s.Files.SchedulerKubeconfig, s.Files)
	f.set("leader-elect", "false") // who runs it sees to that, see server/cluster/leader
	f.set("profiling", "false")
	f.set("kube-api-qps", "300")
	f.set("kube-api-burst", "600")
	return f
}

// Run schedules pods until ctx ends. It may be called again when it has returned.
func (c *Scheduler) Run(ctx context.Context, ready func()) error {
	c.state.set("starting")
	defer c.state.set(c.idle)
	defer configz.Delete("componentconfig") // it would refuse to register again
	name, err := cache.NewInformerName("kube-scheduler")
	if err != nil {
		return fmt.Errorf("name informers: %w", err)
	}
	defer name.Release()
	c.opts.InformerName = name
	defer c.port.listen(ctx, c.opts.SecureServing, c.log)()
	cc, sched, err := app.Setup(ctx, c.opts)
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	go func() {
		c.state.set("waiting for its caches")
		if sched.WaitForHandlersSync(ctx) == nil {
			c.state.set("")
		}
	}()
	ready()
	if err := app.Run(ctx, cc, sched); err != nil && ctx.Err() == nil {
		return fmt.Errorf("schedule: %w", err)
	}
	return nil
}
