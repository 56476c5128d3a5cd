package addons

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
)

// pruneUnwanted prunes the objects that this server's file, or the embedded manifest, no longer names, and that no
// other server's file names. held are the reasons why some stay, except short delays. A doubt that is not "" keeps
// everything.
func (c *Controller) pruneUnwanted(ctx context.Context, id string, rec *record, stay *wanted,
	doubt string) (held []string, err error) {
	unwanted := func(e entry) bool {
		return !stay.has(e) && (len(e.By) == 0 || slices.Contains(e.By, c.cfg.Server))
	}
	n := 0
	for _, e := range rec.Items {
		if unwanted(e) {
			n++
		}
	}
	if n == 0 && (rec.holds(c.cfg.Server) || !rec.names(c.cfg.Server)) {
		return nil, nil
	}
	if doubt == "" {
		ok, reason := c.mayPrune(id)
		if !ok && reason == "" {
			return nil, nil
		}
		doubt = reason
	}
	if n > 0 && doubt != "" {
		return []string{fmt.Sprintf(
			"%d objects that are not in the file any more stay, because nothing proves that a person took them out: %s",
			n, doubt)}, nil
	}
	left := c.left(ctx, rec)
	for i, e := range rec.Items {
		if unwanted(e) {
			rec.Items[i].release(append(left, c.cfg.Server)...)
		} else if !rec.holds(c.cfg.Server) {
			rec.Items[i].release(c.cfg.Server) // the embedded manifest names it
		}
	}
	if !c.cfg.Alone { // the newest record shows that no other server names it
		if err := c.save(ctx, id, rec); err != nil {
			return nil, err
		}
	}
	return c.prune(ctx, id, rec, stay, func(e entry) bool { return !stay.has(e) && len(e.By) == 0 })
}

// names reports whether a server's file names any object.
func (r *record) names(server string) bool {
	return slices.ContainsFunc(r.Items, func(e entry) bool { return slices.Contains(e.By, server) })
}

// foreign reports whether only other servers have the file.
func (r *record) foreign(self string) bool { return len(r.Servers) > 0 && !r.holds(self) }

// left returns the servers that have the file and have left the cluster.
func (c *Controller) left(ctx context.Context, rec *record) []string {
	var out []string
	for name, h := range rec.Servers {
		if name == c.cfg.Server {
			continue
		}
		gone, err := c.cfg.Left(ctx, name, h.Node)
		if err != nil {
			c.log.Warn("cannot determine whether a server has left the cluster; the objects of its manifests stay",
				"server", name, "error", err)
		}
		if err == nil && gone {
			out = append(out, name)
		}
	}
	return out
}

// remove prunes a manifest whose file is gone: the objects that no other server's file names, and the record when no
// server has the file.
func (c *Controller) remove(ctx context.Context, id string, it *item, rec *record) error {
	before, count := rec.clone(), len(rec.Items)
	if rec.holds(c.cfg.Server) || !rec.foreign(c.cfg.Server) {
		ok, reason := c.mayPrune(id)
		if !ok && reason == "" {
			return nil
		}
		if !ok {
			return c.hold(ctx, id, rec, before, []string{reason})
		}
	}
	if rec.holds(c.cfg.Server) {
		rec.leave(append(c.left(ctx, rec), c.cfg.Server)...)
		if !c.cfg.Alone { // the newest record shows that no other server has the file
			if err := c.save(ctx, id, rec); err != nil {
				return err
			}
			before = rec.clone()
		}
	}
	held, err := c.prune(ctx, id, rec, newWanted(), func(e entry) bool { return len(e.By) == 0 })
	switch {
	case err != nil:
		if errStore := c.store(ctx, id, rec, before); errors.Is(errStore, errStale) {
			return errStore
		}
		c.setStatus(id, Failing, count, err)
		return err
	case len(held) > 0:
		return c.hold(ctx, id, rec, before, held)
	case len(rec.Servers) > 0:
		if err := c.store(ctx, id, rec, before); err != nil {
			return err
		}
		c.setStatus(id, Foreign, len(rec.Items), nil)
		return nil
	}
	return c.end(ctx, id, it, Removed)
}

// disable prunes a manifest that the setting disable names, independent of the state of the folder.
func (c *Controller) disable(ctx context.Context, id string, it *item, rec *record) error {
	before, count := rec.clone(), len(rec.Items)
	rec.leave(c.cfg.Server)
	held, err := c.prune(ctx, id, rec, newWanted(), func(e entry) bool { return len(e.By) == 0 })
	if err == nil && len(held) == 0 && len(rec.Servers) == 0 {
		return c.end(ctx, id, it, Disabled)
	}
	if errStore := c.store(ctx, id, rec, before); errors.Is(errStore, errStale) {
		return errStore
	}
	switch {
	case err != nil:
		c.setStatus(id, Failing, count, err)
	case len(held) > 0:
		c.setStatus(id, Held, len(rec.Items), errors.New(strings.Join(held, "\n")))
	default:
		c.setStatus(id, Disabled, 0, nil)
	}
	return err
}

// end removes the record of a manifest without objects, and the manifest itself if its file is gone.
func (c *Controller) end(ctx context.Context, id string, it *item, state State) error {
	if err := c.forget(ctx, id); err != nil {
		c.setStatus(id, Failing, 0, err)
		return err
	}
	c.mu.Lock()
	if c.items[id] == it {
		it.rec = nil
	}
	c.mu.Unlock()
	c.setStatus(id, state, 0, nil)
	c.drop(id, it)
	return nil
}

// hold records why the objects of a manifest stay.
func (c *Controller) hold(ctx context.Context, id string, rec, before *record, reasons []string) error {
	text := strings.Join(reasons, "\n")
	rec.State, rec.Error = Held, limit(text)
	err := c.store(ctx, id, rec, before)
	if !errors.Is(err, errStale) {
		c.setStatus(id, Held, len(rec.Items), errors.New(text))
	}
	return err
}

// prune removes the unwanted entries, last applied first. held are the reasons why some of them stay.
func (c *Controller) prune(ctx context.Context, id string, rec *record, stay *wanted,
	unwanted func(entry) bool) (held []string, err error) {
	var errs []error
	for _, e := range slices.Backward(slices.Clone(rec.Items)) {
		if !unwanted(e) {
			continue
		}
		if reason := c.needed(id, e); reason != "" {
			held = append(held, e.key().String()+" stays: "+reason)
			c.awaits(id)
			continue
		}
		what, err := c.pruneOne(ctx, id, stay, e)
		if err != nil {
			errs = append(errs, fmt.Errorf("prune %s: %w", e.key(), err))
			continue
		}
		rec.drop(e.key())
		c.log.Info("pruned", "manifest", rec.Name, "object", e.key().String(), "result", what)
		c.event(id, rec, core.EventTypeNormal, "Pruned", e.key().String()+" "+what)
	}
	return held, errors.Join(errs...)
}

func (c *Controller) pruneOne(ctx context.Context, id string, stay *wanted, e entry) (string, error) {
	if other := c.ownerOf(e.key()); other != "" && other != id {
		return "now belongs to manifest " + c.nameOf(other), nil
	}
	res, err := c.client.served(ctx, e.gvk())
	if errors.Is(err, errNoKind) {
		return "is gone with its kind", nil
	}
	if err != nil {
		return "", err
	}
	live, err := c.client.get(ctx, res, e.Namespace, e.Name)
	switch {
	case err != nil:
		return "", err
	case live == nil:
		return "is gone already", nil
	case stay.uids[live.UID]:
		return "is in the file by another API group", nil
	case live.Labels[labelManifest] != id || ownedFields(live) == "":
		return "was left: it no longer carries the label of this manifest", nil
	case e.Adopted:
		return "was left: it was there before", c.client.release(ctx, res, e.Namespace, e.Name, live.UID)
	case live.DeletionTimestamp != nil:
		return "is being deleted", nil
	}
	return "was deleted", c.client.remove(ctx, res, e.Namespace, e.Name, live.UID)
}
