package rotation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/umiak-io/umiak/server/cluster/kv"
)

// Report is a server's own report, beside the record.
type Report struct {
	Name string `json:"name"`
	// Epoch is the stage that it has taken over, Since the one that it was started with.
	Epoch int64 `json:"epoch"`
	Since int64 `json:"since"`
	// Started is when it was started.
	Started time.Time `json:"started"`
	Version string    `json:"version"`
}

// report writes what is true of this server, if it is news.
func (m *Member) report(ctx context.Context, c clientv3.KV, epoch int64) error {
	key := Reports + m.cfg.Name
	r := Report{Name: m.cfg.Name, Epoch: epoch, Since: m.since, Started: m.started, Version: m.cfg.Version}
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("report the authorities in use: %w", err)
	}
	for {
		resp, err := c.Get(ctx, key)
		if err != nil {
			return fmt.Errorf("report the authorities in use: %w", err)
		}
		var revision int64
		if len(resp.Kvs) > 0 {
			if string(resp.Kvs[0].Value) == string(raw) {
				return nil
			}
			revision = resp.Kvs[0].ModRevision
		}
		if err := kv.PutIf(ctx, c, key, string(raw), revision); !errors.Is(err, kv.ErrRaced) {
			return err
		}
	}
}

// Reports lists what all servers have reported, by name.
func (m *Member) Reports(ctx context.Context, c clientv3.KV) ([]Report, error) {
	resp, err := c.Get(ctx, Reports, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("read the servers' reports: %w", err)
	}
	var out []Report
	for _, k := range resp.Kvs {
		var r Report
		if err := json.Unmarshal(k.Value, &r); err != nil {
			return nil, fmt.Errorf("read %s in the datastore: %w", k.Key, err)
		}
		out = append(out, r)
	}
	return out, nil
}

// Forget removes the report of a server that is given up, so that nothing waits for it.
func Forget(ctx context.Context, c clientv3.KV, name string) error {
	key := Reports + name
	for {
		resp, err := c.Get(ctx, key)
		if err != nil {
			return fmt.Errorf("forget server %s: %w", name, err)
		}
		if len(resp.Kvs) == 0 {
			return nil
		}
		// The one form of deleting that the stores of other databases have.
		gone, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", resp.Kvs[0].ModRevision)).
			Then(clientv3.OpDelete(key)).Else(clientv3.OpGet(key)).Commit()
		if err != nil {
			return fmt.Errorf("forget server %s: %w", name, err)
		}
		if gone.Succeeded {
			return nil
		}
	}
}

// lagError names the servers that a rotation waits for.
type lagError struct {
	Servers []string
	// Restart means that the servers run, and have to be restarted.
	Restart bool
}

func (e *lagError) Error() string {
	list := strings.Join(e.Servers, ", ")
	if e.Restart {
		return "these servers have to be started again first, one after the other: " + list
	}
	return "these servers have not taken the new keys over: " + list +
		"; start those that are down, give up those that are gone for good (`umiak server forget NAME`), and run the command again: it goes on where it is"
}

// lag returns an error that names the servers for which good is not true.
func (m *Member) lag(ctx context.Context, c clientv3.KV, restart bool, good func(Report) bool) ([]Report, error) {
	all, err := m.Reports(ctx, c)
	if err != nil {
		return nil, err
	}
	var names []string
	if m.cfg.Servers != nil {
		names = m.cfg.Servers()
		// Reports of servers that are no members any more do not count.
		all = slices.DeleteFunc(all, func(r Report) bool { return !slices.Contains(names, r.Name) })
	} else {
		for _, r := range all {
			names = append(names, r.Name)
		}
	}
	var behind []string
	for _, n := range names {
		i := slices.IndexFunc(all, func(r Report) bool { return r.Name == n })
		if i < 0 || !good(all[i]) {
			behind = append(behind, n)
		}
	}
	if len(behind) > 0 {
		slices.Sort(behind)
		return all, &lagError{Servers: behind, Restart: restart}
	}
	return all, nil
}

// wait waits until all servers have reported an epoch.
func (m *Member) wait(ctx context.Context, c Client, epoch int64) error {
	ctx, cancel := context.WithTimeout(ctx, stageTimeout)
	defer cancel()
	w := c.Watch(clientv3.WithRequireLeader(ctx), Reports, clientv3.WithPrefix())
	var lag *lagError
	for {
		_, err := m.lag(ctx, c, false, func(r Report) bool { return r.Epoch >= epoch })
		if err == nil || !errors.As(err, &lag) {
			if lag != nil && ctx.Err() != nil {
				return lag
			}
			return err
		}
		r, open := <-w
		if ctx.Err() != nil {
			return lag
		}
		if err := r.Err(); err != nil || !open {
			return errors.Join(err, errors.New("wait for the other servers: the watch has ended; run the command again: it goes on where it is"))
		}
	}
}

// stageTimeout bounds the time until all servers have a stage: each writes some files and a key of the datastore.
const stageTimeout = 45 * time.Second
