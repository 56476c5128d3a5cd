package backup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/server/backup/s3"
)

const (
	// Scheduled begins the names of scheduled snapshots where snapshot-name is not set.
	Scheduled = "scheduled"
	// OnDemand begins the names of other snapshots, if the caller sets no name.
	OnDemand = "on-demand"

	scheduledReason = "schedule"

	// overdueDelay is the delay between a start and an overdue snapshot.
	overdueDelay = 10 * time.Minute
	// clockInterval is how often wait reads the clock, which may be set meanwhile.
	clockInterval = 15 * time.Minute
)

// Source describes the server of which a Keeper makes snapshots.
type Source struct {
	Dirs layout.Dirs
	// Node is the name of the server's node, which is in the names of its snapshots.
	Node string
	// Datastore returns the datastore, nil while it is not open.
	Datastore func() snapshot.Source
	// Objects reads the Secret of snapshot-s3-config-secret; nil where the settings have none.
	Objects s3.Objects
}

// Keeper creates and stores the snapshots of one server.
type Keeper struct {
	cfg Config
	src Source
	log *slog.Logger

	now        func() time.Time
	openBucket func(Config) (bucket, error)

	saving    sync.Mutex // one snapshot at a time
	uploading sync.Mutex

	mu        sync.Mutex
	life      context.Context // Run's context
	next      time.Time
	lastErr   error
	uploadErr error
}

// New returns the keeper of a server's snapshots. It does nothing yet.
func New(cfg Config, src Source, log *slog.Logger) *Keeper {
	return &Keeper{cfg: cfg, src: src, log: log.With("component", "snapshots"), now: time.Now, openBucket: Config.open}
}

// parse parses a schedule in cron notation. A schedule without any time, such as 30 February, is an error.
func parse(s string) (cron.Schedule, error) {
	schedule, err := cron.ParseStandard(s)
	if err == nil && schedule.Next(time.Now()).IsZero() {
		err = errors.New("it has no next time")
	}
	return schedule, err
}

var errNotOpen = errors.New("the datastore is not open yet")

// Save creates a snapshot now and uploads it. A failed upload is not an error; see Saved. An empty name means OnDemand;
// an empty passphrase means that of the configuration.
func (k *Keeper) Save(ctx context.Context, name, passphrase string) (*Saved, error) {
	if name == "" {
		name = OnDemand
	}
	if name == k.cfg.scheduledName() {
		return nil, fmt.Errorf("the name %q is for the schedule's snapshots, which are pruned; choose another", name)
	}
	e, err := k.save(ctx, name, passphrase, false)
	if err != nil {
		return nil, err
	}
	out := &Saved{Entry: *e}
	if !k.cfg.S3.On() {
		return out, nil
	}
	_, err = k.tryUpload(ctx)
	if _, e := os.Stat(mark(out.Path)); e != nil {
		if out.Bucket = k.cfg.S3.URI(); k.cfg.S3.Bucket == "" {
			out.Bucket = k.cfg.S3.Place()
		}
		return out, nil // an error is about another file, see Section
	}
	out.NotUploaded = fmt.Sprint(err)
	return out, nil
}

func (k *Keeper) save(ctx context.Context, name, passphrase string, scheduled bool) (*snapshot.Entry, error) {
	k.saving.Lock()
	defer k.saving.Unlock()
	src := k.src.Datastore()
	if src == nil {
		return nil, errNotOpen
	}
	if passphrase == "" {
		var err error
		if passphrase, err = k.cfg.Passphrase(); err != nil {
			return nil, err
		}
	}
	reason := "on-demand"
	if scheduled {
		reason = scheduledReason
	}
	e, err := snapshot.Save{
		Dir: k.cfg.Folder(k.src.Dirs), Name: name, Server: k.src.Dirs.Server(), Source: src, Passphrase: passphrase,
		Node: k.src.Node, Version: version.Version, Reason: reason, OnlyChanged: scheduled, Now: k.now(),
	}.Run(ctx)
	if e == nil || err != nil {
		return nil, err
	}
	return e, k.toUpload(e)
}

// Run follows the schedule until ctx ends.
func (k *Keeper) Run(ctx context.Context, ready func()) error {
	k.mu.Lock()
	k.life = ctx
	k.mu.Unlock()
	ready()
	if k.cfg.Disable && !k.cfg.S3.On() {
		<-ctx.Done()
		return nil
	}
	k.catchUp(ctx)
	if k.cfg.Disable {
		for k.wait(ctx, k.now().Add(24*time.Hour)) { // uploads snapshots that were made on demand
		}
		return nil
	}
	schedule, err := parse(k.cfg.Schedule)
	if err != nil {
		return fmt.Errorf("snapshot-schedule-cron: %w", err)
	}
	due := k.first(schedule)
	for {
		k.record(due, nil)
		if !k.wait(ctx, due) {
			return nil
		}
		k.scheduled(ctx)
		due = schedule.Next(k.now())
	}
}

// first returns when the first snapshot of this run is due: as scheduled, or soon if one was missed or there is none
// yet.
func (k *Keeper) first(schedule cron.Schedule) time.Time {
	now := k.now()
	next := schedule.Next(now)
	all, err := snapshot.List(k.cfg.Folder(k.src.Dirs))
	if err == nil && len(all) > 0 && all[0].Err == nil && !schedule.Next(all[0].Time).Before(now) {
		return next
	}
	if soon := now.Add(overdueDelay); soon.Before(next) {
		return soon
	}
	return next
}

// wait returns true at the given time of the machine's clock, and false when ctx has ended.
func (k *Keeper) wait(ctx context.Context, until time.Time) bool {
	for {
		d := until.Sub(k.now())
		if d <= 0 {
			return true
		}
		t := time.NewTimer(min(d, clockInterval))
		select {
		case <-ctx.Done():
			t.Stop()
			return false
		case <-t.C:
			k.catchUp(ctx)
		}
	}
}

func (k *Keeper) scheduled(ctx context.Context) {
	e, err := k.save(ctx, k.cfg.scheduledName(), "", true)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		k.log.Error("cannot save a snapshot; trying again as scheduled", "error", err)
	case e == nil:
		k.log.Debug("nothing changed since the last snapshot")
	default:
		k.log.Info("saved a snapshot", "file", e.Path, "keys", e.Keys, "bytes", e.Size)
	}
	k.record(time.Time{}, err)
	if err == nil {
		if _, err := snapshot.Prune(k.cfg.Folder(k.src.Dirs), k.cfg.scheduledName(), k.src.Node,
			k.cfg.Retention); err != nil {
			k.log.Warn("cannot prune snapshots", "error", err)
		}
		k.catchUp(ctx)
	}
}

// record stores for status when the next snapshot is due, or the result of the last one.
func (k *Keeper) record(next time.Time, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !next.IsZero() {
		k.next = next
		return
	}
	k.lastErr = err
}

// Section is the section of `umiak status` with the snapshots.
func (k *Keeper) Section(context.Context) status.Section {
	out := status.Section{Name: "Snapshots"}
	all, err := snapshot.List(k.cfg.Folder(k.src.Dirs))
	k.mu.Lock()
	next, lastErr, uploadErr := k.next, k.lastErr, k.uploadErr
	k.mu.Unlock()
	good := 0
	for _, e := range all {
		if e.Err == nil {
			good++
			continue
		}
		out.Rows = append(out.Rows, status.Row{Name: "snapshot", State: "unusable", Detail: e.Err.Error()})
	}
	row := status.Row{Name: "snapshots", State: fmt.Sprint(good), Detail: "none yet"}
	if good > 0 {
		row.Detail = "newest of " + all[0].Time.UTC().Format("2006-01-02 15:04")
	}
	if !next.IsZero() {
		row.Detail += ", next " + next.UTC().Format("2006-01-02 15:04")
	}
	if err := errors.Join(err, lastErr); err != nil {
		row.State, row.Detail = "failing", err.Error()
	}
	out.Rows = append(out.Rows, row)
	if k.cfg.S3.On() {
		row := status.Row{Name: "bucket", State: "up to date", Detail: k.cfg.S3.Place()}
		if files, _ := waiting(k.cfg.Folder(k.src.Dirs)); len(files) > 0 {
			row.State, row.Detail = fmt.Sprintf("%d waiting", len(files)), "to be uploaded to "+row.Detail
		}
		if uploadErr != nil {
			row.State, row.Detail = "failing", fmt.Sprintf("%s: %v", row.Detail, uploadErr)
		}
		out.Rows = append(out.Rows, row)
	}
	return out
}
