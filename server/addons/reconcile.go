package addons

import (
	"context"
	"errors"
	"fmt"
	"slices"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/umiak-io/umiak/server/addons/manifest"
)

// reconcile brings the cluster to what one manifest says. Only one worker at a time has a manifest.
func (c *Controller) reconcile(ctx context.Context, id string) error {
	c.mu.Lock()
	it := c.items[id]
	if it == nil {
		c.mu.Unlock()
		return nil
	}
	file, gone, disabled, objs, broken := it.file, it.gone, it.disabled, it.objs, it.err
	var rec *record
	if it.rec != nil {
		rec = it.rec.clone()
	}
	c.mu.Unlock()
	count := 0
	if rec != nil {
		count = len(rec.Items)
	}

	switch {
	case gone && rec == nil:
		c.mu.Lock()
		if c.items[id] == it && it.gone {
			delete(c.items, id)
		}
		c.mu.Unlock()
		return nil
	case gone && rec.Server != "" && rec.Server != c.cfg.Server:
		c.setStatus(id, Foreign, count, nil)
		return nil
	case file.Skip:
		c.setStatus(id, Skipped, count, nil)
		return nil
	case gone || disabled:
		err := c.removeAll(ctx, id, rec)
		if err != nil {
			c.setStatus(id, Failing, count, err)
			return err
		}
		if !gone {
			c.setStatus(id, Disabled, 0, nil)
			return nil
		}
		c.setStatus(id, Removed, 0, nil)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.items[id] == it && it.gone && it.rec == nil {
			delete(c.items, id)
		}
		return nil
	}

	if rec == nil {
		rec = &record{}
	}
	before := rec.clone()
	rec.Name, rec.Origin, rec.Server = file.Name, file.Origin, ""
	if file.Origin != manifest.Embedded {
		rec.Server = c.cfg.Server
	}
	if broken != nil {
		rec.State, rec.Error = Invalid, limit(broken.Error())
		err := c.store(ctx, id, rec, before)
		c.setStatus(id, Invalid, count, broken)
		return err
	}
	err := c.applyAll(ctx, id, rec, objs)
	rec.State, rec.Error = Applied, ""
	if err != nil {
		rec.State, rec.Error = Failing, limit(err.Error())
	}
	err = errors.Join(err, c.store(ctx, id, rec, before))
	if err != nil {
		c.setStatus(id, Failing, len(rec.Items), err)
		return err
	}
	c.setStatus(id, Applied, len(rec.Items), nil)
	return nil
}

// store writes the record if it differs from what was there, and makes it the known one.
func (c *Controller) store(ctx context.Context, id string, rec, before *record) error {
	var err error
	if rec.uid == "" || before.Name != rec.Name || before.Origin != rec.Origin || before.Server != rec.Server ||
		before.State != rec.State || before.Error != rec.Error || !slices.Equal(before.Items, rec.Items) {
		err = c.save(ctx, id, rec)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if it := c.items[id]; it != nil {
		it.rec = rec.clone()
	}
	return err
}

// target is an object with its place in the API.
type target struct {
	obj *unstructured.Unstructured
	res resource
	key manifest.Key
	sum string
}

// applyAll applies what differs and prunes what is no longer in the file, and changes rec accordingly.
func (c *Controller) applyAll(ctx context.Context, id string, rec *record, objs []*unstructured.Unstructured) error {
	var errs []error
	wanted := map[manifest.Key]bool{}
	var todo []*unstructured.Unstructured
	for _, o := range objs {
		k := manifest.KeyOf(o.GroupVersionKind().GroupKind(), o.GetNamespace(), o.GetName())
		if other := c.ownerOf(k); other != id {
			errs = append(errs, fmt.Errorf("%s also stands in manifest %s, which comes first", k, c.nameOf(other)))
			continue
		}
		wanted[k] = true
		todo = append(todo, o)
	}
	// Kinds of a CustomResourceDefinition in the same file become known on the way, so the rest of the
	// file is done in a second pass once it was applied.
	for pass := 0; len(todo) > 0; pass++ {
		var later []*unstructured.Unstructured
		targets, unknown, err := c.resolve(ctx, id, todo, pass > 0)
		errs = append(errs, err)
		definesKinds := false
		if err := c.prepare(ctx, id, rec, targets); err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, t := range targets {
			applied, err := c.applyOne(ctx, rec, t)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", t.key, err))
			}
			definesKinds = definesKinds || applied && t.key.Kind == "CustomResourceDefinition"
		}
		if definesKinds && pass == 0 {
			later = unknown
		} else {
			for _, o := range unknown {
				errs = append(errs, fmt.Errorf("%s %s: %w", o.GroupVersionKind(), o.GetName(), errNoKind))
			}
		}
		todo = later
	}
	errs = append(errs, c.prune(ctx, id, rec, func(e entry) bool { return !wanted[e.key()] }))
	return errors.Join(errs...)
}

func (c *Controller) nameOf(id string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if it := c.items[id]; it != nil {
		return it.file.Name
	}
	return id
}

// resolve finds each object's place, gives it our labels, and returns those whose kind is not known.
func (c *Controller) resolve(ctx context.Context, id string, objs []*unstructured.Unstructured, fresh bool) (out []target, unknown []*unstructured.Unstructured, err error) {
	var errs []error
	refreshed := map[string]bool{}
	for _, o := range objs {
		gvk := o.GroupVersionKind()
		res, err := c.client.resourceOf(ctx, gvk, fresh && !refreshed[gvk.GroupVersion().String()])
		if errors.Is(err, errNoKind) && !fresh && !refreshed[gvk.GroupVersion().String()] {
			res, err = c.client.resourceOf(ctx, gvk, true)
		}
		refreshed[gvk.GroupVersion().String()] = true
		if errors.Is(err, errNoKind) {
			unknown = append(unknown, o)
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", gvk.Kind, o.GetName(), err))
			continue
		}
		if err := c.watches.ensure(ctx, res, gvk.GroupKind()); err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", gvk.Kind, o.GetName(), err))
			continue
		}
		o = o.DeepCopy()
		switch {
		case !res.Namespaced:
			o.SetNamespace("")
		case o.GetNamespace() == "":
			o.SetNamespace(meta.NamespaceDefault)
		}
		l := o.GetLabels()
		if l == nil {
			l = map[string]string{}
		}
		l[labelManifest], l[labelPartOf] = id, setID(id)
		o.SetLabels(l)
		t := target{obj: o, res: res, key: manifest.KeyOf(gvk.GroupKind(), o.GetNamespace(), o.GetName())}
		if gvk.GroupKind() != core.SchemeGroupVersion.WithKind("Secret").GroupKind() {
			b, err := o.MarshalJSON() // maps are written in the order of their keys
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", t.key, err))
				continue
			}
			t.sum = hash(b)
		}
		out = append(out, t)
	}
	return out, unknown, errors.Join(errs...)
}

// prepare writes the record with all that is about to be made, so that nothing is ever applied that a
// later run would not know of.
func (c *Controller) prepare(ctx context.Context, id string, rec *record, targets []target) error {
	grew := false
	for _, t := range targets {
		if _, known := rec.find(t.key); known {
			continue
		}
		live, err := c.client.get(ctx, t.res, t.obj.GetNamespace(), t.obj.GetName())
		if err != nil {
			return fmt.Errorf("%s: %w", t.key, err)
		}
		rec.put(entry{APIVersion: t.obj.GetAPIVersion(), Kind: t.obj.GetKind(), Namespace: t.obj.GetNamespace(), Name: t.obj.GetName(),
			// What has a manifest's label was made by us, and moves from one file to another.
			Adopted: live != nil && live.Labels[labelManifest] == ""})
		grew = true
	}
	if !grew {
		return nil
	}
	if rec.State == "" {
		rec.State = Pending
	}
	if err := c.save(ctx, id, rec); err != nil {
		return err
	}
	c.mu.Lock()
	if it := c.items[id]; it != nil {
		it.rec = rec.clone()
	}
	c.mu.Unlock()
	return nil
}

func (c *Controller) applyOne(ctx context.Context, rec *record, t target) (applied bool, err error) {
	e, _ := rec.find(t.key)
	live, there := c.watches.fields(t.res, t.obj.GetNamespace(), t.obj.GetName())
	if there && e.Fields != "" && live == e.Fields && t.sum != "" && e.Desired == t.sum {
		return false, nil
	}
	m, err := c.client.apply(ctx, t.res, t.obj)
	if err != nil {
		return false, err
	}
	e.APIVersion, e.Kind, e.Namespace, e.Name = t.obj.GetAPIVersion(), t.obj.GetKind(), t.obj.GetNamespace(), t.obj.GetName()
	e.Desired, e.Fields = t.sum, ownedFields(m)
	rec.put(e)
	return true, nil
}

// prune removes the entries that are no longer wanted, the last applied first.
func (c *Controller) prune(ctx context.Context, id string, rec *record, unwanted func(entry) bool) error {
	var errs []error
	for _, e := range slices.Backward(slices.Clone(rec.Items)) {
		if !unwanted(e) {
			continue
		}
		what, err := c.pruneOne(ctx, id, e)
		if err != nil {
			errs = append(errs, fmt.Errorf("prune %s: %w", e.key(), err))
			continue
		}
		rec.drop(e.key())
		c.log.Info("pruned", "manifest", rec.Name, "object", e.key().String(), "result", what)
		c.event(id, rec, core.EventTypeNormal, "Pruned", e.key().String()+" "+what)
	}
	return errors.Join(errs...)
}

func (c *Controller) pruneOne(ctx context.Context, id string, e entry) (string, error) {
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
	case live.Labels[labelManifest] != id || ownedFields(live) == "":
		return "was left: it no longer carries the label of this manifest", nil
	case e.Adopted:
		return "was left: it was there before", c.client.release(ctx, res, e.Namespace, e.Name, live.UID)
	case live.DeletionTimestamp != nil:
		return "is being deleted", nil
	}
	return "was deleted", c.client.remove(ctx, res, e.Namespace, e.Name, live.UID)
}

// removeAll prunes everything and then the record.
func (c *Controller) removeAll(ctx context.Context, id string, rec *record) error {
	if rec == nil {
		return nil
	}
	before := rec.clone()
	if err := c.prune(ctx, id, rec, func(entry) bool { return true }); err != nil {
		return errors.Join(err, c.store(ctx, id, rec, before))
	}
	if err := c.forget(ctx, id); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if it := c.items[id]; it != nil {
		it.rec = nil
	}
	return nil
}

func limit(s string) string {
	if len(s) > 8<<10 {
		return s[:8<<10]
	}
	return s
}
