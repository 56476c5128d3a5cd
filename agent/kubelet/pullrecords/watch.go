package pullrecords

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/fsnotify/fsnotify"
)

// WatchPulls calls pulled with the images that the kubelet is pulling, by their full names, when it begins to pull one, and when it drops
// a record meanwhile: its collection of unused images drops those of all images that are in use or were imported (the images that it did
// not weigh), every five minutes on a file system that is more than 85 % full. It returns when ctx ends or the watch does.
func (r *Records) WatchPulls(ctx context.Context, pulled func(ctx context.Context, names []string)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch the kubelet's records of pulls (inotify instances used up? raise fs.inotify.max_user_instances): %w", err)
	}
	defer w.Close() //nolint:errcheck // nothing is lost with a watch
	for _, dir := range []string{r.pulling, r.done} {
		if err := w.Add(dir); err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	for {
		var names []string
		// One that has ended since it was listed is no pull any more.
		if err := r.intents(func(_, image string) error {
			if image != "" {
				names = append(names, image)
			}
			return nil
		}); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("read the kubelet's records of pulls: %w", err)
		}
		if len(names) > 0 {
			pulled(ctx, names)
		}
		if !next(ctx, w) {
			if ctx.Err() != nil {
				return nil
			}
			return errors.New("watch the kubelet's records of pulls: ended")
		}
	}
}

// next waits for a record that comes or goes.
func next(ctx context.Context, w *fsnotify.Watcher) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case e, ok := <-w.Events:
			if !ok {
				return false
			}
			if e.Op&(fsnotify.Create|fsnotify.Remove) != 0 {
				return true
			}
		case _, ok := <-w.Errors:
			return ok // events were lost: look
		}
	}
}

// Named reports whether an image has one of some full names.
func (i Image) Named(names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(i.Imported, n) || slices.Contains(i.Others, n) })
}
