package nodecmd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/reexec"
	"github.com/umiak-io/umiak/internal/status"
)

// ends is where it is kept why the process ended.
func (p Process) ends() reexec.Store { return reexec.Store{Dir: p.Dirs.Run} }

// lastEnd returns why the process before this one ended, nil if it was told to. What cannot be found out is only
// logged.
func (p Process) lastEnd() *reexec.Reason {
	text, err := p.ends().KeepPanics()
	if err != nil {
		p.Log.Warn("a panic of this process would not be kept", "error", err)
	}
	last, err := p.ends().Last()
	if err != nil {
		p.Log.Warn("it is not known why umiak ended", "error", err)
	}
	if last == nil {
		return nil
	}
	reexec.ReapChildren()
	if err := reexec.TakeName(); err != nil {
		p.Log.Warn("ps shows this process under another name", "error", err)
	}
	if text != "" {
		p.Log.Error("the umiak before this one ended by a panic", "error", last.Error, "stack", text)
	}
	return last
}

// hold delays the part that ended the process before this one; everything else starts at once.
func hold(parts []lifecycle.Part, last *reexec.Reason) {
	if last == nil {
		return
	}
	rest := time.Until(last.At.Add(last.Pause()))
	// A panic names the component, which need not be a part: then all wait that can.
	known := slices.ContainsFunc(parts, func(p lifecycle.Part) bool { return p.Restart != nil && p.Name == last.Part })
	for _, p := range parts {
		if p.Restart != nil && (p.Name == last.Part || !known && last.Part != "") && rest > 0 {
			p.Restart.Held = &lifecycle.Held{Reason: errors.New(last.Error), Attempt: last.Count, For: rest}
		}
	}
}

// anew executes the program again because a part has ended that can run only once in a process. It returns nil if a
// signal has ended ctx. deaf has signals end the process from then on: one that came while the program is executed would
// be lost otherwise.
func (p Process) anew(ctx context.Context, a *lifecycle.Anew, reason error, env []string, deaf func()) error {
	if ctx.Err() != nil {
		return nil
	}
	r, err := p.ends().Note(a.Part, a.Err, time.Now())
	if err != nil {
		return errors.Join(err, reason) // without a count there would be no pause
	}
	p.Log.Error("umiak executes itself anew; containers run on", "part", a.Part, "error", reason, "time in a row", r.Count, "part waits", r.Pause())
	if deaf(); ctx.Err() != nil {
		return nil
	}
	return errors.Join(reexec.Exec(env), reason)
}

// endRows says why the process was started again.
func endRows(last *reexec.Reason) status.Section {
	s := status.Section{Name: "Restarted"}
	if last == nil {
		return s
	}
	row := status.Row{Name: fmt.Sprintf("%s ago", time.Since(last.At).Round(time.Second)), State: "because " + last.String()}
	if last.Count > 1 {
		row.Detail = fmt.Sprintf("%d times in a row", last.Count)
	}
	s.Rows = append(s.Rows, row)
	return s
}
