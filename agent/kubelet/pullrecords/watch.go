package pullrecords

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/fsnotify/fsnotify"
)

// WatchPulls calls pulled with the full names of the images that the kubelet is pulling, whenever it starts a pull or
// drops a record. The kubelet's image garbage collection drops the records of all images that it did not consider,
// which are those in use or pinned, every five minutes on a file system that is more than 85 % full. WatchPulls returns
// when ctx or the watch ends.
func (r *Records) WatchPulls(ctx context.Context, pulled func(ctx context.Context, names []string)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf(
			"watch the kubelet's pull records (out of inotify instances? raise fs.inotify.max_user_instances): %w", err)
	}
	defer w.Close() //nolint:errcheck // holds no data
	for _, dir := range []string{r.pulling, r.done} {
		if err := w.Add(dir); err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	for {
		var names []string
		// A record that vanished since it was listed is ignored.
		if err := r.intents(func(_, image string) error {
			if image != "" {
				names = append(names, image)
			}
			return nil
		}); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("read the kubelet's pull records: %w", err)
		}
		if len(names) > 0 {
			pulled(ctx, names)
		}
		if !next(ctx, w) {
			if ctx.Err() != nil {
				return nil
			}
			return errors.New("watch the kubelet's pull records: ended")
		}
	}
}

// next waits until a record is created or removed. It returns false if ctx or the watch has ended.
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
			return ok // events were lost: read all records
		}
	}
}

// Named reports whether the image has one of the given full names.
func (i Image) Named(names []string) bool {
	return slices.ContainsFunc(
		names, func(n string) bool { return slices.Contains(i.Imported, n) || slices.Contains(i.Others, n) })
}
