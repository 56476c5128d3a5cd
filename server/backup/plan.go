package backup

import (
	"fmt"
	"time"

	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/layout"
)

// Plan is what a server with a configuration does by itself, for people to look at.
type Plan struct {
	Schedule  string `json:"schedule"`
	Disabled  bool   `json:"disabled"`
	Retention int    `json:"retention"`
	Folder    string `json:"folder"`
	Encrypted bool   `json:"encrypted"`
	// Bucket is where they are kept as well, empty if nowhere; Waiting are those that are not there yet.
	Bucket  string   `json:"bucket,omitempty"`
	Waiting []string `json:"waiting,omitempty"`
	// Next are the coming times, local ones; none if it is disabled.
	Next []time.Time `json:"next"`
	// Newest is when the newest usable snapshot of the schedule was made, nil if there is none.
	Newest *time.Time `json:"newest"`
}

// planned is how many coming times a plan has.
const planned = 3

// Plan says what will be made from now on. An error names the key that is wrong, or the folder.
func (c Config) Plan(d layout.Dirs, now time.Time) (Plan, error) {
	p := Plan{Schedule: c.Schedule, Disabled: c.Disable, Retention: c.Retention, Folder: c.Folder(d), Encrypted: c.PassphraseFile != ""}
	if c.S3.On() {
		p.Bucket = c.uri() + " at " + c.S3.Endpoint
		p.Waiting, _ = waiting(p.Folder)
	}
	schedule, err := parse(c.Schedule)
	if err != nil {
		return p, fmt.Errorf("snapshot-schedule-cron: %q: %w", c.Schedule, err)
	}
	for t := now; !c.Disable && len(p.Next) < planned; {
		t = schedule.Next(t)
		p.Next = append(p.Next, t)
	}
	all, err := snapshot.List(p.Folder)
	if err != nil {
		return p, err
	}
	for _, e := range all { // the newest first
		if e.Err == nil && e.Reason == scheduledReason {
			p.Newest = &e.Time
			break
		}
	}
	return p, nil
}
