package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/umiak-io/umiak/internal/status"
)

// HealthPath is the path at which the API server serves the health of all parts, to users that RBAC allows.
const HealthPath = "/umiak/v1/health"

// Check returns the reason why a part does not work, nil if it does.
type Check func(ctx context.Context) error

// Health reports the health of the parts of the process. Parts register a check, which runs for each report.
type Health struct {
	mu     sync.Mutex
	checks map[string]Check
}

// ComponentHealth is one part's.
type ComponentHealth struct {
	Name    string `json:"name"`
	Healthy bool   `json:"healthy"`
	Message string `json:"message,omitempty"`
}

// Register adds a check or replaces the one of that name.
func (h *Health) Register(name string, c Check) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.checks == nil {
		h.checks = map[string]Check{}
	}
	h.checks[name] = c
}

// Report runs all checks at once, each with at most five seconds.
func (h *Health) Report(ctx context.Context) []ComponentHealth {
	h.mu.Lock()
	out := make([]ComponentHealth, 0, len(h.checks))
	checks := make([]Check, 0, len(h.checks))
	for n, c := range h.checks {
		out = append(out, ComponentHealth{Name: n})
		checks = append(checks, c)
	}
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := c(ctx); err != nil {
				out[i].Message = err.Error()
				return
			}
			out[i].Healthy = true
		}()
	}
	wg.Wait()
	slices.SortFunc(out, func(a, b ComponentHealth) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Rows returns what status shows about the parts.
func (h *Health) Rows(ctx context.Context) (out []status.Row) {
	for _, c := range h.Report(ctx) {
		row := status.Row{Name: c.Name, State: "healthy", Detail: c.Message}
		if !c.Healthy {
			row.State = status.Unhealthy
		}
		out = append(out, row)
	}
	return out
}

// ServeHTTP answers as /readyz does: 200 or 503, one line a part; JSON when asked for.
func (h *Health) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rep := h.Report(r.Context())
	code := http.StatusOK
	for _, c := range rep {
		if !c.Healthy {
			code = http.StatusServiceUnavailable
		}
	}
	w.Header().Set("Cache-Control", "no-store")
	if strings.Contains(r.Header.Get("Accept"), "application/json") || r.URL.Query().Get("output") == "json" {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(rep) // the reader has gone away: nothing to do
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	for _, c := range rep {
		if c.Healthy {
			fmt.Fprintf(w, "[+]%s ok\n", c.Name)
		} else {
			fmt.Fprintf(w, "[-]%s failed: %s\n", c.Name, c.Message)
		}
	}
}
