package process

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

// ends returns the store of the reasons for which processes ended.
func (p Process) ends() reexec.Store { return reexec.Store{Dir: p.Dirs.Run} }

// lastEnd is why the process before this one ended; nil if it was stopped, or if there was none since boot.
type lastEnd struct{ *reexec.Reason }

// lastEnd reads why the process before this one ended. An error that keeps it from being known is logged.
func (p Process) lastEnd() *lastEnd {
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
	return &lastEnd{last}
}

// delay delays the part that ended the process before this one; everything else starts at once.
func (l *lastEnd) delay(parts []lifecycle.Part) {
	if l == nil {
		return
	}
	rest := time.Until(l.At.Add(l.Pause()))
	// A panic names the component, which need not be a part: all parts that can wait do so then.
	known := slices.ContainsFunc(parts, func(p lifecycle.Part) bool { return p.Restart != nil && p.Name == l.Part })
	for _, p := range parts {
		if p.Restart != nil && (p.Name == l.Part || !known && l.Part != "") && rest > 0 {
			p.Restart.Held = &lifecycle.Held{Reason: errors.New(l.Error), Attempt: l.Count, For: rest}
		}
	}
}

// Section reports why the process was started again.
func (l *lastEnd) Section(context.Context) status.Section {
	s := status.Section{Name: "Restarted"}
	if l == nil {
		return s
	}
	row := status.Row{Name: fmt.Sprintf("%s ago", time.Since(l.At).Round(time.Second)), State: "because " + l.String()}
	if l.Count > 1 {
		row.Detail = fmt.Sprintf("%d times in a row", l.Count)
	}
	s.Rows = append(s.Rows, row)
	return s
}

// execAgain executes the program again because a part has ended that can run only once in a process. It returns nil if
// a signal has ended ctx. After deaf, a signal ends the process: one that came while the program is executed would be
// lost otherwise.
func (p Process) execAgain(ctx context.Context, a *lifecycle.ReexecError, reason error, env []string, deaf func()) error {
	if ctx.Err() != nil {
		return nil
	}
	r, err := p.ends().Save(a.Part, a.Err, time.Now())
	if err != nil {
		return errors.Join(err, reason) // without a count there would be no pause
	}
	p.Log.Error("umiak executes itself again; containers run on", "part", a.Part, "error", reason,
		"time in a row", r.Count, "part waits", r.Pause())
	if deaf(); ctx.Err() != nil {
		return nil
	}
	return errors.Join(reexec.Exec(env), reason)
}
