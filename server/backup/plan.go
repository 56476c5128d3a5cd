package backup

import (
	"fmt"
	"time"

	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/layout"
)

// Plan describes what a server's configuration does, for people.
type Plan struct {
	Schedule  string `json:"schedule"`
	Disabled  bool   `json:"disabled"`
	Retention int    `json:"retention"`
	Folder    string `json:"folder"`
	Encrypted bool   `json:"encrypted"`
	// Bucket is the bucket of the snapshots, "" if there is none. Waiting are the files that are not uploaded yet.
	Bucket  string   `json:"bucket,omitempty"`
	Waiting []string `json:"waiting,omitempty"`
	// Next are the next times, in local time; empty if the schedule is disabled.
	Next []time.Time `json:"next"`
	// Newest is the time of the newest usable scheduled snapshot, nil if there is none.
	Newest *time.Time `json:"newest"`
}

// plannedTimes is how many future times a plan has.
const plannedTimes = 3

// Plan returns the plan from now on. The error names the invalid setting or the folder.
func (c Config) Plan(d layout.Dirs, now time.Time) (Plan, error) {
	p := Plan{Schedule: c.Schedule, Disabled: c.Disable, Retention: c.Retention, Folder: c.Folder(d),
		Encrypted: c.PassphraseFile != ""}
	if c.S3.On() {
		p.Bucket = c.S3.Place()
		p.Waiting, _ = waiting(p.Folder)
	}
	schedule, err := parse(c.Schedule)
	if err != nil {
		return p, fmt.Errorf("snapshot-schedule-cron: %q: %w", c.Schedule, err)
	}
	for t := now; !c.Disable && len(p.Next) < plannedTimes; {
		t = schedule.Next(t)
		p.Next = append(p.Next, t)
	}
	all, err := snapshot.List(p.Folder)
	if err != nil {
		return p, err
	}
	for _, e := range all { // newest first
		if e.Err == nil && e.Reason == scheduledReason {
			p.Newest = &e.Time
			break
		}
	}
	return p, nil
}
