package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/umiak-io/umiak/internal/datadisk"
	"github.com/umiak-io/umiak/internal/gctuning"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/internal/version"
)

// Process runs parts as the process.
type Process struct {
	Dirs    layout.Dirs
	Etc     string // the folder of settings, which records where the data are
	Log     *slog.Logger
	Silence func() // drops further records of libraries' loggers
	Parts   []lifecycle.Part
	Sources []status.Source
	// Forgive, if set, handles a library's wish to end the process where there is another cure; see logging.Exits.
	Forgive func(component string, reason error) bool
	// Profiles serves profiles of the process at a socket for root.
	Profiles bool
	// Confirm is called once all parts are ready: this version of the program works on this machine.
	Confirm func() error
}

// Claim locks the data directory for this process until release is called, and registers the node, so that commands
// find it. It fails where the disk that held the data is not mounted, and where the data are those of k3s.
func Claim(d layout.Dirs, etc string, log *slog.Logger) (release func(), err error) {
	if err := datadisk.Check(etc, d.Data); err != nil {
		return nil, err
	}
	if release, err = instance.Acquire(d); err != nil {
		return nil, err
	}
	if err := instance.Registry(layout.Registry).Add(d); err != nil {
		log.Warn("commands find this node only with --data-dir and --run-dir", "error", err)
	}
	return release, nil
}

// Run blocks until a signal arrives or a part fails for good. Where a part has ended that can run only once in a
// process, it executes the program again and does not return.
func (p Process) Run(ctx context.Context) error {
	gctuning.Limit()
	begun := time.Now()
	env := os.Environ() // before what follows changes it
	systemd := takeNotifySocket()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ctx, stop := p.untilSignal(ctx, systemd)
	defer stop()

	last := p.lastEnd()
	group, err := p.group(last)
	if err != nil {
		return err
	}
	go func() {
		if group.WaitReady(ctx) == nil {
			p.Log.Info("ready", "after", time.Since(begun).Round(time.Millisecond))
			p.recordStart()
			systemd(daemon.SdNotifyReady)
			gctuning.GiveBack(ctx)
		}
	}()
	err = group.Run(ctx)
	if ended := new(lifecycle.ReexecError); errors.As(err, &ended) {
		if err := p.execAgain(ctx, ended, err, env, stop); err != nil {
			return err
		}
		err = nil // a signal came first
	}
	if err == nil {
		p.Log.Info("stopped", "cause", context.Cause(ctx))
		return p.ends().Forget()
	}
	if _, e := p.ends().Save("", err, time.Now()); e != nil {
		p.Log.Warn("the next start will not know why umiak ended", "error", e)
	}
	return err
}

// group returns the parts with those of every process. The status socket starts first and stops last, which lets a
// slow start or stop be examined.
func (p Process) group(last *lastEnd) (*lifecycle.Group, error) {
	var group *lifecycle.Group
	st := &status.Server{
		Socket: p.Dirs.StatusSocket(), Version: version.Version, Ready: func() bool { return group.AllReady() },
		Sources: append([]status.Source{last.Section,
			func(context.Context) status.Section { return partsSection(group) }}, p.Sources...),
	}
	exits := logging.CatchExits()
	if p.Forgive != nil {
		exits.Handle(p.Forgive)
	}
	parts := []lifecycle.Part{{Name: "status", Run: st.Run}, {Name: "component-exits", Run: exits.Run}}
	if p.Profiles {
		parts = append(parts, lifecycle.Part{Name: "profiles", Run: profiles{p.Dirs.ProfileSocket(), p.Log}.run})
	}
	parts = append(parts, p.Parts...)
	last.delay(parts)
	group, err := lifecycle.New(p.Log, parts...)
	return group, err
}

// recordStart records that this version works here, and where its data are.
func (p Process) recordStart() {
	if p.Confirm != nil {
		if err := p.Confirm(); err != nil {
			p.Log.Warn("this version may be taken back at the next start", "error", err)
		}
	}
	if err := datadisk.Save(p.Etc, p.Dirs.Data, p.Dirs.Run); err != nil {
		p.Log.Warn("a start without the disk of the data will not be noticed", "error", err)
	}
}

// partsSection reports the state of each part.
func partsSection(g *lifecycle.Group) status.Section {
	s := status.Section{Name: "Parts"}
	for _, p := range g.Status() {
		row := status.Row{Name: p.Name, State: string(p.State), Detail: p.Error}
		switch in := time.Until(p.Next).Round(time.Second); {
		case p.State == lifecycle.Retrying && in > 0:
			row.Detail += fmt.Sprintf(" (attempt %d failed, the next is in %s)", p.Attempt, in)
		case p.State == lifecycle.Retrying:
			row.Detail += fmt.Sprintf(" (attempt %d is under way)", p.Attempt+1)
		case len(p.WaitingFor) > 0:
			row.Detail = fmt.Sprint("waiting for ", p.WaitingFor)
		case row.Detail == "":
			row.Detail = "for " + time.Since(p.Since).Round(time.Second).String()
		}
		s.Rows = append(s.Rows, row)
	}
	return s
}
