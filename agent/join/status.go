package join

import (
	"context"
	"crypto/x509"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/internal/status"
)

// Section is the section of `umiak status` with the cluster, what the node waits for, and the expiry of its
// certificates.
func (j *Joiner) Section(ctx context.Context) status.Section {
	j.mu.Lock()
	row := status.Row{Name: "https://" + j.cfg.Server, State: j.state, Detail: j.detail}
	isJoined, node, skew := j.joined != nil, j.node.Name, j.skew
	j.mu.Unlock()
	if !isJoined {
		return status.Section{Name: "Cluster", Rows: []status.Row{row}}
	}
	if row.Detail == "" {
		row.Detail = "as node " + node
	}
	out := status.Section{Name: "Cluster", Rows: []status.Row{row}}
	if why := j.refused(ctx, node); why != "" {
		out.Rows = append(out.Rows, status.Row{Name: "node " + node, State: "look at this", Detail: why})
	}
	if skew != "" {
		out.Rows = append(out.Rows, status.Row{Name: "release", State: "look at this", Detail: skew})
	}
	due := j.due()
	for _, id := range identities {
		c, err := j.keyPair(id)
		if err != nil {
			out.Rows = append(out.Rows, status.Row{Name: id, State: "broken", Detail: err.Error()})
			continue
		}
		out.Rows = append(out.Rows, certificateRow(id, c.Leaf, due, j.cfg.Now()))
	}
	return out
}

func certificateRow(id string, c *x509.Certificate, due, now time.Time) status.Row {
	row := status.Row{Name: id, State: "ends " + c.NotAfter.UTC().Format(time.DateOnly)}
	switch {
	case now.After(c.NotAfter):
		row.State, row.Detail = "ended "+c.NotAfter.UTC().Format(time.DateOnly), "renewed as soon as a server answers"
	case now.After(due):
		row.Detail = "renewed as soon as a server answers"
	default:
		row.Detail = "renewed by itself on " + due.UTC().Format(time.DateOnly)
	}
	return row
}

// refused returns why the cluster does not accept this node, "" if it does or no server answers. It asks the cluster
// only for `umiak status`.
func (j *Joiner) refused(ctx context.Context, node string) string {
	client, err := clientOf(j.cfg.Dirs.KubeletKubeconfig())
	if err != nil {
		return err.Error()
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err = client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return "the cluster has no such node: it was deleted. Its pods keep running. Restart umiak to register it again, or run `umiak cleanup`"
	case apierrors.IsUnauthorized(err):
		return "the cluster refuses this node's certificate. Its pods keep running. Restart it with a token to join again"
	}
	return "" // accepted, or no server answers, which the section Servers shows
}
