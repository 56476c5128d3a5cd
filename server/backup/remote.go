package backup

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/listing"
	"github.com/umiak-io/umiak/server/backup/s3"
)

// bucket is a store of snapshots.
type bucket interface {
	List(ctx context.Context, suffix string) ([]s3.Object, error)
	Upload(ctx context.Context, file, info string) error
	Download(ctx context.Context, name, file string) error
	Remove(ctx context.Context, name string) error
	String() string
}

var _ bucket = (*s3.Bucket)(nil)

// Saved is a snapshot that Save created.
type Saved struct {
	snapshot.Entry
	Bucket string `json:"bucket,omitempty"` // the bucket that has it, "" if none
	// NotUploaded is why it is not in the bucket; a running server tries again. "" if it is, or if there is no bucket.
	NotUploaded string `json:"notUploaded,omitempty"`
}

// Places of a snapshot.
const (
	Here   = "here"
	Bucket = "s3"
)

// Listed is a snapshot with its places: Here, Bucket, or both.
type Listed struct {
	snapshot.Entry
	Where []string `json:"where"`
}

// maxInfo bounds an encoded description in bytes.
const maxInfo = 16 << 10

// describe encodes a snapshot's description for a header, so that lists can show it without a download.
func describe(i snapshot.Info) (string, error) {
	raw, err := json.Marshal(i)
	return base64.StdEncoding.EncodeToString(raw), err
}

// entry decodes an object's description, which is untrusted.
func entry(o s3.Object, at string) snapshot.Entry {
	e := snapshot.Entry{Path: at + "/" + o.Name}
	if err := parseInfo(o.Info, &e.Info); err != nil {
		e.Err = fmt.Errorf("%s: %w", e.Path, err)
	}
	e.Size = o.Size
	return e
}

func parseInfo(text string, i *snapshot.Info) error {
	switch {
	case text == "":
		return errors.New("it was not uploaded by umiak: its content is unknown without a download; it may be usable")
	case len(text) > maxInfo:
		return fmt.Errorf("its description has %d bytes", len(text))
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err == nil {
		err = json.Unmarshal(raw, i)
	}
	if err != nil {
		*i = snapshot.Info{}
		return fmt.Errorf("read its description: %w", err)
	}
	return nil
}

func (c Config) open() (bucket, error) {
	if c.S3.Bucket == "" { // WithSecret was not called: nobody can read the Secret now
		_, err := c.S3.Resolve(context.Background(), nil)
		return nil, err
	}
	return s3.Open(c.S3)
}

// List returns the snapshots of both places, newest first, and unusable files last. If one place cannot be read, it
// returns the snapshots of the other and an error.
func (c Config) List(ctx context.Context, d layout.Dirs) ([]Listed, error) {
	here, err := snapshot.List(c.Folder(d))
	var there []snapshot.Entry
	if c.S3.On() {
		var e error
		there, e = remote(ctx, c.open, c.S3.URI())
		err = errors.Join(err, e)
	}
	return merge(here, there), err
}

func remote(ctx context.Context, open func() (bucket, error), at string) ([]snapshot.Entry, error) {
	b, err := open()
	if err != nil {
		return nil, err
	}
	objects, err := b.List(ctx, snapshot.Suffix)
	if err != nil {
		return nil, err
	}
	out := make([]snapshot.Entry, 0, len(objects))
	for _, o := range objects {
		out = append(out, entry(o, at))
	}
	snapshot.Sort(out)
	return out, nil
}

// merge merges both lists. Files with the same name, cluster and time are the same snapshot.
func merge(here, there []snapshot.Entry) []Listed {
	type id struct {
		name, cluster string
		time          int64
	}
	of := func(e snapshot.Entry) id { return id{filepath.Base(e.Path), e.Cluster, e.Time.Unix()} }
	where := map[string][]string{}
	all := slices.Clone(here)
	paths := map[id]string{}
	for _, e := range here {
		paths[of(e)] = e.Path
		where[e.Path] = []string{Here}
	}
	for _, e := range there {
		if p, ok := paths[of(e)]; ok {
			where[p] = append(where[p], Bucket)
			continue
		}
		where[e.Path] = []string{Bucket}
		all = append(all, e)
	}
	snapshot.Sort(all)
	out := make([]Listed, 0, len(all))
	for _, e := range all {
		out = append(out, Listed{Entry: e, Where: where[e.Path]})
	}
	return out
}

// Prune removes all but the newest Retention snapshots of a name and node from both places. In the bucket, which other
// clusters may share, it considers only this cluster's. It returns what it removed.
func (c Config) Prune(ctx context.Context, d layout.Dirs, name, node string) ([]string, error) {
	removed, err := snapshot.Prune(c.Folder(d), name, node, c.Retention)
	if c.S3.On() {
		there, e := c.pruneBucket(ctx, c.open, d, name, node)
		removed, err = append(removed, there...), errors.Join(err, e)
	}
	return removed, err
}

func (c Config) pruneBucket(ctx context.Context, open func() (bucket, error), d layout.Dirs, name,
	node string) (removed []string, err error) {
	cluster, err := c.cluster(d)
	if err != nil {
		return nil, fmt.Errorf("prune snapshots in the bucket: %w", err)
	}
	all, err := remote(ctx, open, c.S3.URI())
	if err != nil {
		return nil, fmt.Errorf("prune snapshots: %w", err)
	}
	b, err := open()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(e snapshot.Entry) bool { return e.Cluster != cluster })
	var errs []error
	for _, e := range snapshot.Superfluous(all, name, node, c.Retention) {
		if err := b.Remove(ctx, path.Base(e.Path)); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, e.Path)
	}
	return removed, errors.Join(errs...)
}

// Fetch finds the snapshot to restore: a file, or the name of one in the folder or else in the bucket, from which it is
// downloaded. done removes the download.
func (c Config) Fetch(ctx context.Context, d layout.Dirs, name string) (file string, done func(), err error) {
	nothing := func() {}
	if _, err := os.Stat(name); err == nil || name != filepath.Base(name) || !strings.HasSuffix(name, snapshot.Suffix) {
		return name, nothing, nil // the reader reports errors of the file
	}
	file = filepath.Join(c.Folder(d), name)
	if _, err := os.Stat(file); err == nil {
		return file, nothing, nil
	}
	if !c.S3.On() {
		return "", nothing, fmt.Errorf("find snapshot: no file %s here or in %s, and snapshot-s3-bucket is not set",
			name, c.Folder(d))
	}
	b, err := c.open()
	if err != nil {
		return "", nothing, err
	}
	// Not into the server's folder, which the restore replaces.
	if err := os.MkdirAll(d.Data, 0o700); err != nil {
		return "", nothing, fmt.Errorf("download snapshot: %w", err)
	}
	dir := filepath.Join(d.Data, ".restore-download")
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil { // remove an interrupted attempt
		return "", nothing, fmt.Errorf("download snapshot: %w", err)
	}
	done = func() { _ = os.RemoveAll(dir) }
	file = filepath.Join(dir, name)
	if err := b.Download(ctx, name, file); err != nil {
		done()
		return "", nothing, err
	}
	return file, done, nil
}

// markEnd is the suffix of marks: an empty file next to each snapshot that is not uploaded yet. Marks outlive the
// process, and without them no network access is needed to find pending uploads.
const markEnd = ".to-upload"

func mark(file string) string {
	return filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+markEnd)
}

// waiting returns the marked files, oldest first, and the marks whose file no longer exists.
func waiting(dir string) (files, orphans []string) {
	marks, _ := listing.Match(dir, ".*"+snapshot.Suffix+markEnd) // listing snapshots reports an unreadable folder
	times := map[string]int64{}
	for _, m := range marks {
		f := filepath.Join(dir, strings.TrimSuffix(strings.TrimPrefix(filepath.Base(m), "."), markEnd))
		st, err := os.Stat(f)
		if err != nil {
			orphans = append(orphans, m)
			continue
		}
		times[f] = st.ModTime().UnixNano()
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b string) int {
		if times[a] < times[b] {
			return -1
		}
		return 1
	})
	return files, orphans
}

// upload uploads the marked files. It stops at the first error, unless that concerns only one file.
func (k *Keeper) upload(ctx context.Context) error {
	if !k.cfg.S3.On() {
		return nil
	}
	k.uploading.Lock()
	defer k.uploading.Unlock()
	files, orphans := waiting(k.cfg.Folder(k.src.Dirs))
	var errs []error
	for _, m := range orphans {
		errs = append(errs, os.Remove(m))
	}
	if len(files) == 0 {
		return errors.Join(errs...)
	}
	config, err := k.cfg.WithSecret(ctx, k.src.Objects)
	if err != nil {
		return err
	}
	open := func() (bucket, error) { return k.openBucket(config) }
	b, err := open()
	if err != nil {
		return err
	}
	scheduled := false
	for _, f := range files {
		info, err := snapshot.Inspect(f)
		if err == nil && !info.Encrypted && !k.cfg.S3Unencrypted {
			// It contains the cluster's keys. Other files may be encrypted.
			errs = append(
				errs, fmt.Errorf("%s is not encrypted and is not uploaded: set snapshot-passphrase-file and save again, or snapshot-s3-unencrypted if all readers of the bucket may control the cluster", f))
			continue
		}
		if err == nil {
			var text string
			if text, err = describe(info); err == nil {
				err = b.Upload(ctx, f, text)
			}
		}
		if err != nil {
			if errs = append(errs, err); errors.Is(err, s3.ErrTaken) {
				continue
			}
			break
		}
		k.log.Info("uploaded a snapshot", "file", f, "to", b.String())
		scheduled = scheduled || info.Reason == scheduledReason
		errs = append(errs, os.Remove(mark(f)))
	}
	if scheduled {
		_, err := config.pruneBucket(ctx, open, k.src.Dirs, config.scheduledName(), k.src.Node)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

var errStopping = errors.New("the server is stopping")

// tryUpload uploads and records the result for status. isNew reports whether the error differs from the last one.
func (k *Keeper) tryUpload(ctx context.Context) (isNew bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	k.mu.Lock()
	if k.life != nil { // a server that stops must not wait for the network
		stop := context.AfterFunc(k.life, func() { cancel(errStopping) })
		defer stop()
	}
	k.mu.Unlock()
	err = k.upload(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	if ctx.Err() == nil {
		isNew = err != nil && (k.uploadErr == nil || k.uploadErr.Error() != err.Error())
		k.uploadErr = err
	}
	return isNew, err
}

// catchUp uploads pending files. It logs a repeated error once.
func (k *Keeper) catchUp(ctx context.Context) {
	if isNew, err := k.tryUpload(ctx); isNew {
		k.log.Error("cannot upload snapshots, trying again", "error", err, "every", clockInterval)
	}
}

// toUpload marks a new snapshot. This happens before the first attempt, during which the process may end.
func (k *Keeper) toUpload(e *snapshot.Entry) error {
	if !k.cfg.S3.On() {
		return nil
	}
	return atomicfile.Write(mark(e.Path), nil, 0o600)
}
