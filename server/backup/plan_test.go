package backup

import (
	"strings"
	"testing"
	"time"
)

func TestPlan(t *testing.T) {
	k, f := keeper(t)
	now := time.Date(2026, 11, 25, 11, 30, 0, 0, time.UTC)
	p, err := k.cfg.Plan(k.src.Dirs, now)
	if err != nil || p.Newest != nil || len(p.Next) != plannedTimes || !p.Next[0].Equal(now.Add(30*time.Minute)) ||
		!p.Next[1].Equal(now.Add(12*time.Hour+30*time.Minute)) {
		t.Fatalf("%+v, %v", p, err)
	}
	if _, err := k.Save(t.Context(), "by-hand", ""); err != nil {
		t.Fatal(err)
	}
	if p, err = k.cfg.Plan(k.src.Dirs, now); err != nil || p.Newest != nil {
		t.Errorf("one that was asked for is none of the schedule's: %+v, %v", p, err)
	}
	f.revision++ // otherwise there is nothing new to save
	k.scheduled(t.Context())
	k.cfg.Disable = true
	if p, err = k.cfg.Plan(k.src.Dirs, now); err != nil || p.Newest == nil || len(p.Next) != 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestScheduleThatNeverComes(t *testing.T) {
	for _, s := range []string{"0 0 30 2 *", "0 0 31 4 *", "61 * * * *", "often", ""} {
		err := Config{Schedule: s, Retention: 1}.Validate()
		if err == nil || !strings.Contains(err.Error(), "snapshot-schedule-cron") {
			t.Errorf("%q: %v", s, err)
		}
	}
}
