// Package status serves the status of a running umiak over a unix socket that only root can open.
//
// The process registers sources, each of which returns one section. `umiak status` reads them as one report and
// prints it as aligned lines or as JSON. The sources are called only for a request.
package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/umiak-io/umiak/internal/output"
	"github.com/umiak-io/umiak/internal/socket"
)

// Unhealthy is the State of a part that runs but does not work.
const Unhealthy = "unhealthy"

// Row is one line: a name, its state and a remark.
type Row struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`
}

// Section is the result of one source.
type Section struct {
	Name string `json:"name"`
	Rows []Row  `json:"rows"`
}

// Report is the whole status.
type Report struct {
	Version  string    `json:"version"`
	PID      int       `json:"pid"`
	Started  time.Time `json:"started"`
	Ready    bool      `json:"ready"`
	Sections []Section `json:"sections"`
}

// Reporter is implemented by parts of the process that have a section of their own in the report.
type Reporter interface {
	// Section describes the present state. It returns before ctx ends.
	Section(ctx context.Context) Section
}

// Source returns a section with the current state. It must return before ctx ends.
type Source func(ctx context.Context) Section

// Server serves the status on a socket.
type Server struct {
	Socket  string
	Version string
	// Ready reports whether all parts are ready.
	Ready   func() bool
	Sources []Source
}

// Run serves until ctx ends. The folder of the socket must exist.
func (s *Server) Run(ctx context.Context, ready func()) error {
	l, err := socket.Listen(ctx, s.Socket)
	if err != nil {
		return fmt.Errorf("open the status socket: %w", err)
	}
	started := time.Now()
	srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter,
		r *http.Request) {
		rep := Report{Version: s.Version, PID: os.Getpid(), Started: started, Ready: s.Ready()}
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		for _, src := range s.Sources {
			rep.Sections = append(rep.Sections, src(ctx))
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(rep) // fails only if the client is gone
	})}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	ready()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve status: %w", err)
	}
	return nil
}

// Get returns the report of the process that listens on the socket.
func Get(ctx context.Context, path string) (*Report, error) {
	c := socket.Client(path)
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://umiak/", nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask for status: %w", socket.Unanswered(ctx, path, err))
	}
	defer resp.Body.Close() //nolint:errcheck // nothing more is read
	var rep Report
	if err := json.NewDecoder(io.LimitReader(resp.Body, 16<<20)).Decode(&rep); err != nil {
		return nil, fmt.Errorf("read status: %w", err)
	}
	return &rep, nil
}

// Healthy reports whether no row is Unhealthy.
func (r *Report) Healthy() bool {
	for _, s := range r.Sections {
		if slices.ContainsFunc(s.Rows, func(row Row) bool { return row.State == Unhealthy }) {
			return false
		}
	}
	return true
}

// Print writes the report as aligned lines.
func (r *Report) Print(w io.Writer) error {
	state := "starting"
	switch {
	case r.Ready && r.Healthy():
		state = "ready"
	case r.Ready:
		state = Unhealthy
	}
	fmt.Fprintf(w, "umiak %s  %s  pid %d  up %s\n", r.Version, state, r.PID, time.Since(r.Started).Round(time.Second))
	for _, s := range r.Sections {
		if len(s.Rows) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n%s\n", s.Name)
		t := output.NewTable(w)
		for _, row := range s.Rows {
			fmt.Fprintf(t, "  %s\t%s\t%s\n", row.Name, row.State, row.Detail)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}
