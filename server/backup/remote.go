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

// bucket is where snapshots are kept as well.
type bucket interface {
	List(ctx context.Context, suffix string) ([]s3.Object, error)
	Upload(ctx context.Context, file, info string) error
	Download(ctx context.Context, name, file string) error
	Remove(ctx context.Context, name string) error
	String() string
}

var _ bucket = (*s3.Bucket)(nil)

// Saved is a snapshot that was made now.
type Saved struct {
	snapshot.Entry
	Bucket string `json:"bucket,omitempty"` // where else it is
	// NotUploaded is why it is not there; a running server tries again.
	NotUploaded string `json:"notUploaded,omitempty"`
}

// Places of a snapshot.
const (
	Here   = "here"
	Bucket = "s3"
)

// Listed is a snapshot in the folder, in the bucket, or in both.
type Listed struct {
	snapshot.Entry
	Where []string `json:"where"`
}

// maxInfo is how long a description may be, as text.
const maxInfo = 16 << 10

// describe is the description of an object, for a header: what lists show, without a download.
func describe(i snapshot.Info) (string, error) {
	raw, err := json.Marshal(i)
	return base64.StdEncoding.EncodeToString(raw), err
}

// entry reads an object's description; it is somebody else's text.
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
		return errors.New("it was not uploaded by umiak, so nothing is known of it without a download; it may be good")
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

// uri is a folder of a bucket.
func (c Config) uri() string { return "s3://" + path.Join(c.S3.Bucket, c.S3.Folder) }

func (c Config) open() (bucket, error) { return s3.Open(c.S3) }

// List returns the snapshots of both places, the newest first, and what merely has the name of one last.
// Where one place cannot be read, it returns those of the other with the error.
func (c Config) List(ctx context.Context, d layout.Dirs) ([]Listed, error) {
	here, err := snapshot.List(c.Folder(d))
	var there []snapshot.Entry
	if c.S3.On() {
		var e error
		there, e = remote(ctx, c.open, c.uri())
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

// merge takes two files of one name, cluster and time for the same one.
func merge(here, there []snapshot.Entry) []Listed {
	type id struct {
		name, cluster string
		time          int64
	}
	of := func(e snapshot.Entry) id { return id{filepath.Base(e.Path), e.Cluster, e.Time.Unix()} }
	where := map[string][]string{}
	all := slices.Clone(here)
	known := map[id]string{}
	for _, e := range here {
		known[of(e)] = e.Path
		where[e.Path] = []string{Here}
	}
	for _, e := range there {
		if p, ok := known[of(e)]; ok {
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

// Prune removes all but the newest, as many as are to be kept, of a name and node from both places. In the
// bucket, which other clusters may use as well, it looks at this cluster's only. It returns what it removed.
func (c Config) Prune(ctx context.Context, d layout.Dirs, name, node string) ([]string, error) {
	removed, err := snapshot.Prune(c.Folder(d), name, node, c.Retention)
	if c.S3.On() {
		there, e := c.pruneBucket(ctx, c.open, d, name, node)
		removed, err = append(removed, there...), errors.Join(err, e)
	}
	return removed, err
}

func (c Config) pruneBucket(ctx context.Context, open func() (bucket, error), d layout.Dirs, name, node string) (removed []string, err error) {
	files, err := snapshot.Files(d.Server())
	if err != nil {
		return nil, fmt.Errorf("prune snapshots: %w", err)
	}
	cluster, err := snapshot.Cluster(files)
	if err != nil {
		return nil, fmt.Errorf("prune snapshots in the bucket: %w", err)
	}
	all, err := remote(ctx, open, c.uri())
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

// Fetch finds the snapshot to restore: a file, or the name of one in the folder or else in the bucket, from
// where it is downloaded. Done removes what was downloaded.
func (c Config) Fetch(ctx context.Context, d layout.Dirs, name string) (file string, done func(), err error) {
	nothing := func() {}
	if _, err := os.Stat(name); err == nil || name != filepath.Base(name) || !strings.HasSuffix(name, snapshot.Suffix) {
		return name, nothing, nil // of what is wrong with it, the reader tells
	}
	file = filepath.Join(c.Folder(d), name)
	if _, err := os.Stat(file); err == nil {
		return file, nothing, nil
	}
	if !c.S3.On() {
		return "", nothing, fmt.Errorf("find snapshot: there is no file %s here or in %s, and no snapshot-s3-bucket is set", name, c.Folder(d))
	}
	b, err := c.open()
	if err != nil {
		return "", nothing, err
	}
	// Not into the server's folder, which is going to be replaced.
	if err := os.MkdirAll(d.Data, 0o700); err != nil {
		return "", nothing, fmt.Errorf("download snapshot: %w", err)
	}
	dir := filepath.Join(d.Data, ".restore-download")
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil { // of an attempt that was broken off
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

// A mark is an empty file beside a snapshot that is not in the bucket yet. It outlives the process, and
// without one there is nothing to ask the network for.
const markEnd = ".to-upload"

func mark(file string) string {
	return filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+markEnd)
}

// waiting are the files that have a mark, the oldest first, and the marks of files that are no more.
func waiting(dir string) (files, orphans []string) {
	marks, _ := listing.Match(dir, ".*"+snapshot.Suffix+markEnd) // who lists the snapshots says that the folder cannot be read
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

// upload uploads what has a mark. It stops at the first that fails, unless only that one is concerned.
func (k *Keeper) upload(ctx context.Context) error {
	if !k.Config.S3.On() {
		return nil
	}
	k.uploading.Lock()
	defer k.uploading.Unlock()
	files, orphans := waiting(k.Config.Folder(k.Dirs))
	var errs []error
	for _, m := range orphans {
		errs = append(errs, os.Remove(m))
	}
	if len(files) == 0 {
		return errors.Join(errs...)
	}
	b, err := k.open()
	if err != nil {
		return err
	}
	scheduled := false
	for _, f := range files {
		info, err := snapshot.Inspect(f)
		if err == nil && !info.Encrypted && !k.Config.S3Unencrypted {
			// It holds the keys of the cluster. The others may be encrypted.
			errs = append(errs, fmt.Errorf("%s is not encrypted and stays here: set snapshot-passphrase-file, and save anew, or snapshot-s3-unencrypted if whoever reads the bucket may have the cluster", f))
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
		k.Log.Info("uploaded a snapshot", "file", f, "to", b.String())
		scheduled = scheduled || info.Reason == scheduledReason
		errs = append(errs, os.Remove(mark(f)))
	}
	if scheduled {
		_, err := k.Config.pruneBucket(ctx, k.open, k.Dirs, Scheduled, k.Node)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

var errStopping = errors.New("the server is stopping")

// tryUpload uploads and remembers for status how it went. It says whether that is news.
func (k *Keeper) tryUpload(ctx context.Context) (news bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	k.mu.Lock()
	if k.life != nil { // who asked may not care, but a server that stops does not wait for the network
		stop := context.AfterFunc(k.life, func() { cancel(errStopping) })
		defer stop()
	}
	k.mu.Unlock()
	err = k.upload(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	if ctx.Err() == nil {
		news = err != nil && (k.uploadErr == nil || k.uploadErr.Error() != err.Error())
		k.uploadErr = err
	}
	return news, err
}

// catchUp uploads what could not be uploaded before. The same error again and again is logged once.
func (k *Keeper) catchUp(ctx context.Context) {
	if news, err := k.tryUpload(ctx); news {
		k.Log.Error("cannot upload snapshots; they are kept here and tried again", "err", err, "every", look)
	}
}

func (k *Keeper) open() (bucket, error) {
	if k.Open != nil {
		return k.Open()
	}
	return k.Config.open()
}

// toUpload marks a new snapshot; it is done before the first attempt, which may be the last thing that
// this process does.
func (k *Keeper) toUpload(e *snapshot.Entry) error {
	if !k.Config.S3.On() {
		return nil
	}
	return atomicfile.Write(mark(e.Path), nil, 0o600)
}
