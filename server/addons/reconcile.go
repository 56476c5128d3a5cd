package addons

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/umiak-io/umiak/server/addons/manifest"
)

// reconcile brings the cluster to the state of one manifest. Only one worker at a time processes a manifest.
func (c *Controller) reconcile(ctx context.Context, id string) error {
	for tries := 0; ; tries++ {
		err := c.tryReconcile(ctx, id)
		if !errors.Is(err, errStale) {
			return err
		}
		if tries == 10 {
			c.setStatus(id, Failing, 0, err)
			return err
		}
		if err := c.refresh(ctx, id); err != nil {
			return err
		}
	}
}

func (c *Controller) tryReconcile(ctx context.Context, id string) error {
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
	if gone || disabled || file.Skip {
		c.kinds.await(id, nil)
	}
	switch {
	case gone && rec == nil:
		c.drop(id, it)
		return nil
	case file.Skip:
		c.setStatus(id, Skipped, count, nil)
		return nil
	case disabled && rec != nil && !rec.foreign(c.cfg.Server):
		return c.disable(ctx, id, it, rec)
	case gone:
		return c.remove(ctx, id, it, rec)
	case disabled:
		c.setStatus(id, Disabled, 0, nil)
		return nil
	}
	return c.present(ctx, id, file, objs, broken, rec)
}

// drop removes a manifest that has neither a file nor a record.
func (c *Controller) drop(id string, it *item) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.items[id] == it && it.gone && it.rec == nil {
		delete(c.items, id)
	}
}

// present applies a manifest whose file exists. rec is nil if it was never applied.
func (c *Controller) present(ctx context.Context, id string, file manifest.File, objs []*unstructured.Unstructured,
	broken error, rec *record) error {
	if rec == nil {
		rec = &record{}
	}
	before := rec.clone()
	rec.Name, rec.Origin = file.Name, file.Origin
	was := rec.Servers[c.cfg.Server]
	if file.Origin != manifest.Embedded {
		rec.hold(c.cfg.Server, holding{Path: file.Origin, Place: file.Place, Node: c.cfg.Node, Ragged: was.Ragged})
	} else {
		rec.letGo(c.cfg.Server)
	}
	if broken != nil {
		c.kinds.await(id, nil)
		rec.State, rec.Error = Invalid, limit(broken.Error())
		if errors.Is(broken, manifest.ErrFault) {
			rec.State = Held
		}
		err := c.store(ctx, id, rec, before)
		if !errors.Is(err, errStale) {
			c.setStatus(id, rec.State, len(before.Items), broken)
		}
		return err
	}
	stay, err := c.applyAll(ctx, id, rec, objs)
	if errors.Is(err, errStale) {
		return err
	}
	doubt := file.Doubt
	if doubt == "" && file.Ragged && !was.Ragged {
		doubt = "it ends in the middle of a line, like an interrupted copy"
	}
	held, errPrune := c.pruneUnwanted(ctx, id, rec, stay, doubt)
	err = errors.Join(err, errPrune)
	switch rec.State, rec.Error = Applied, ""; {
	case err != nil:
		rec.State, rec.Error = Failing, limit(err.Error())
	case len(held) > 0:
		rec.State, rec.Error = Held, limit(strings.Join(held, "\n"))
	}
	if h, mine := rec.Servers[c.cfg.Server]; mine && (len(held) == 0 || len(before.Items) == 0) {
		h.Ragged = file.Ragged
		rec.Servers[c.cfg.Server] = h
	}
	if err = errors.Join(err, c.store(ctx, id, rec, before)); errors.Is(err, errStale) {
		return err
	}
	switch {
	case err != nil:
		c.setStatus(id, Failing, len(rec.Items), err)
	case rec.State == Held:
		c.setStatus(id, Held, len(rec.Items), errors.New(rec.Error))
	default:
		c.setStatus(id, Applied, len(rec.Items), nil)
	}
	return err
}

// store saves the record if it differs from before, and makes it the current one.
func (c *Controller) store(ctx context.Context, id string, rec, before *record) error {
	var err error
	if rec.uid == "" || !rec.equal(before) {
		err = c.save(ctx, id, rec)
	}
	if errors.Is(err, errStale) {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if it := c.items[id]; it != nil {
		it.rec = rec.clone()
	}
	return err
}

// target is an object with its API resource.
type target struct {
	obj *unstructured.Unstructured
	res resource
	key manifest.Key
	sum string
}

// applyAll applies the objects that differ, updates rec, and returns the objects that must stay.
func (c *Controller) applyAll(ctx context.Context, id string, rec *record,
	objs []*unstructured.Unstructured) (stay *wanted, err error) {
	var errs []error
	stay = newWanted()
	todo := objs
	// Kinds that a CustomResourceDefinition in the same file defines are known only after it is applied, so unknown
	// kinds get a second pass.
	var groups []string // API groups of unknown kinds
	for pass := 0; len(todo) > 0; pass++ {
		var later []*unstructured.Unstructured
		targets, unresolved, err := c.resolve(ctx, id, todo, pass > 0)
		errs = append(errs, err)
		var mine []target
		for _, t := range targets {
			switch other := c.ownerOf(t.key); {
			case other != id:
				errs = append(errs, fmt.Errorf("%s is also in manifest %s, which comes first", t.key, c.nameOf(other)))
			case stay.keys[t.key]:
				errs = append(errs, fmt.Errorf("%s is in the file twice: its kind has no namespaces", t.key))
			default:
				stay.keys[t.key] = true
				mine = append(mine, t)
			}
		}
		for _, o := range unresolved.all() { // whether its kind has namespaces is unknown
			if c.owns(id, o) {
				stay.unresolved(o)
			}
		}
		definesKinds := false
		if err := c.prepare(ctx, id, rec, mine); err != nil {
			return stay, errors.Join(append(errs, err)...)
		}
		for _, t := range mine {
			uid, applied, err := c.applyOne(ctx, rec, t)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", t.key, err))
			}
			stay.uids[uid] = true
			definesKinds = definesKinds || applied && t.key.Kind == "CustomResourceDefinition"
		}
		if definesKinds && pass == 0 {
			later = unresolved.unknown
		} else {
			for _, o := range unresolved.unknown {
				groups = append(groups, o.GroupVersionKind().Group)
				errs = append(errs, fmt.Errorf("%s %s: %w", o.GroupVersionKind(), o.GetName(), errNoKind))
			}
		}
		todo = later
	}
	c.kinds.await(id, groups)
	return stay, errors.Join(errs...)
}

func (c *Controller) nameOf(id string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if it := c.items[id]; it != nil {
		return it.file.Name
	}
	return id
}

// unresolved holds objects whose API resource could not be determined.
type unresolved struct {
	unknown []*unstructured.Unstructured // the API server does not know the kind
	failed  []*unstructured.Unstructured // the request failed
}

func (u unresolved) all() []*unstructured.Unstructured { return slices.Concat(u.unknown, u.failed) }

// resolve determines each object's API resource and adds umiak's labels. none holds the objects without a resource.
// fresh ignores cached discovery.
func (c *Controller) resolve(ctx context.Context, id string, objs []*unstructured.Unstructured,
	fresh bool) (out []target, none unresolved, err error) {
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
			none.unknown = append(none.unknown, o)
			continue
		}
		if err == nil {
			err = c.watches.ensure(ctx, res, gvk.GroupKind())
		}
		if err != nil {
			none.failed = append(none.failed, o)
			errs = append(errs, fmt.Errorf("%s %s: %w", gvk.Kind, o.GetName(), err))
			continue
		}
		c.setScope(gvk.GroupKind(), res.Namespaced)
		t, err := newTarget(id, o, res)
		if err != nil {
			none.failed = append(none.failed, o)
			errs = append(errs, err)
			continue
		}
		out = append(out, t)
	}
	return out, none, errors.Join(errs...)
}

// newTarget returns the object as it is applied.
func newTarget(id string, o *unstructured.Unstructured, res resource) (target, error) {
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
	t := target{obj: o, res: res, key: fileKey(o)}
	if o.GroupVersionKind().GroupKind() == core.SchemeGroupVersion.WithKind("Secret").GroupKind() {
		return t, nil
	}
	b, err := o.MarshalJSON() // keys are sorted, so equal objects give equal text
	if err != nil {
		return target{}, fmt.Errorf("%s: %w", t.key, err)
	}
	t.sum = hash(b)
	return t, nil
}

// prepare adds new objects to the record and saves it before they are applied, so that a later run knows all applied
// objects.
func (c *Controller) prepare(ctx context.Context, id string, rec *record, targets []target) error {
	grew := false
	for _, t := range targets {
		if e, ok := rec.find(t.key); ok {
			if rec.holds(c.cfg.Server) && !slices.Contains(e.By, c.cfg.Server) {
				e.name(c.cfg.Server)
				rec.put(e)
				grew = true
			}
			continue
		}
		live, err := c.client.get(ctx, t.res, t.obj.GetNamespace(), t.obj.GetName())
		if err != nil {
			return fmt.Errorf("%s: %w", t.key, err)
		}
		e := entry{APIVersion: t.obj.GetAPIVersion(), Kind: t.obj.GetKind(), Namespace: t.obj.GetNamespace(),
			Name: t.obj.GetName(),
			// An object with a manifest's label was created by umiak, and moves from one file to another.
			Adopted: live != nil && live.Labels[labelManifest] == ""}
		if rec.holds(c.cfg.Server) {
			e.name(c.cfg.Server)
		}
		rec.put(e)
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

// applyOne applies an object unless it is up to date. uid is the live object's.
func (c *Controller) applyOne(ctx context.Context, rec *record, t target) (uid types.UID, applied bool, err error) {
	e, _ := rec.find(t.key)
	live, uid, there := c.watches.fields(t.res, t.obj.GetNamespace(), t.obj.GetName())
	if there && e.Fields != "" && live == e.Fields && t.sum != "" && e.Desired == t.sum {
		return uid, false, nil
	}
	m, err := c.client.apply(ctx, t.res, t.obj)
	if err != nil {
		return uid, false, err
	}
	e.APIVersion, e.Kind, e.Namespace, e.Name = t.obj.GetAPIVersion(), t.obj.GetKind(), t.obj.GetNamespace(),
		t.obj.GetName()
	e.Desired, e.Fields = t.sum, ownedFields(m)
	rec.put(e)
	return m.UID, true, nil
}

func limit(s string) string {
	if len(s) > 8<<10 {
		return s[:8<<10]
	}
	return s
}
