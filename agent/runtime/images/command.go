package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/umiak-io/umiak/internal/output"
)

// ImportOptions are the options of `umiak images import`. The zero value imports for this machine only.
type ImportOptions struct {
	// AllPlatforms also keeps the content for other platforms, so that it can be exported again.
	AllPlatforms bool
}

// Import imports archives and writes its progress to progress. It continues after a broken archive and returns all
// errors. The path "-" is the standard input.
func Import(ctx context.Context, socket string, paths []string, opts ImportOptions, progress io.Writer) error {
	c, err := Connect(socket)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // a connection, all is done
	if err := sweep(ctx, c); err != nil && ctx.Err() == nil {
		fmt.Fprintf(progress, "remove the content of interrupted imports: %v\n", err)
	}
	var errs []error
	for _, path := range paths {
		if ctx.Err() != nil {
			errs = append(errs, fmt.Errorf("import %s: %w", path, context.Cause(ctx)))
			break
		}
		f, id, err := source(ctx, path)
		if err != nil {
			errs = append(errs, fmt.Errorf("import %s: %w", path, err))
			continue
		}
		fmt.Fprintf(progress, "importing %s%s\n", path, megabytes(id.Size))
		begun, reported := time.Now(), time.Now()
		got, err := importFile(ctx, c, f, importOptions{allPlatforms: opts.AllPlatforms, progress: func(n int64) {
			if time.Since(reported) > 2*time.Second && id.Size > 0 {
				reported = time.Now()
				fmt.Fprintf(progress, "  %d%%\n", n*100/id.Size)
			}
		}})
		_ = f.Close() // opened for reading
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("interrupted: %w", context.Cause(ctx))
		}
		if err = errors.Join(err, got.unusable()); err != nil {
			errs = append(errs, fmt.Errorf("import %s: %w", path, err))
		}
		for _, name := range slices.Sorted(maps.Keys(got.Images)) {
			fmt.Fprintf(progress, "  %s\n", name)
		}
		if err == nil {
			fmt.Fprintf(progress, "  done in %s\n", time.Since(begun).Round(10*time.Millisecond))
		}
	}
	return errors.Join(errs...)
}

// source opens an archive. A read from standard input may block forever; when ctx ends, the import ends without it.
func source(ctx context.Context, path string) (io.ReadCloser, identity, error) {
	if path != "-" {
		return open(path)
	}
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { _ = w.CloseWithError(context.Cause(ctx)) })
	go func() {
		_, err := io.Copy(w, os.Stdin)
		_ = w.CloseWithError(err)
	}()
	return r, identity{}, nil
}

func megabytes(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.1f MB)", float64(n)/1e6)
}

// Image is one entry of List's output.
type Image struct {
	Name    string    `json:"name"`
	Digest  string    `json:"digest"`
	Size    int64     `json:"size"` // bytes as stored, compressed
	Pinned  bool      `json:"pinned"`
	Created time.Time `json:"created"` // when the image was added to this store
}

// List writes the node's images to w: as a table if format is "", as JSON if it is "json".
func List(ctx context.Context, socket, format string, w io.Writer) error {
	if format != "" && format != "json" {
		return fmt.Errorf("output %q is not json", format)
	}
	c, err := Connect(socket)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // a connection, all is done
	ctx = namespaces.WithNamespace(ctx, Namespace)
	all, err := c.ListImages(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	list := []Image{}
	for _, img := range all {
		name := img.Name()
		// The CRI service also stores every image under its ID and its digest.
		if strings.HasPrefix(name, "sha256:") || strings.Contains(name, "@") {
			continue
		}
		size, err := img.Size(ctx)
		if err != nil {
			size = 0 // content is missing; list the image anyway
		}
		list = append(list, Image{Name: name, Digest: img.Target().Digest.String(), Size: size,
			Pinned: img.Labels()[pinnedLabel] == pinnedValue, Created: img.Metadata().CreatedAt})
	}
	slices.SortFunc(list, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	if format == "json" {
		return output.JSON(w, list)
	}
	t := output.NewTable(w, "IMAGE", "DIGEST", "SIZE", "PINNED")
	for _, i := range list {
		fmt.Fprintf(t, "%s\t%.19s\t%.1f MB\t%v\n", i.Name, i.Digest, float64(i.Size)/1e6, i.Pinned)
	}
	return t.Flush()
}

// Export writes images into an archive that Import, docker and ctr can read: to file, which gets its name once it is
// complete and is compressed if the name ends with .gz, .tgz, .zst or .tzst, or to stdout if file is "-".
func Export(ctx context.Context, socket string, names []string, file string, stdout io.Writer) (err error) {
	if len(names) == 0 {
		return errors.New("export: no image named")
	}
	c, err := Connect(socket)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // a connection, all is done
	ctx = namespaces.WithNamespace(ctx, Namespace)
	opts := []archive.ExportOpt{archive.WithPlatform(platforms.Default()), archive.WithSkipMissing(c.ContentStore())}
	for _, n := range names {
		ref, err := reference.ParseDockerRef(n)
		if err != nil {
			return fmt.Errorf("export %s: %w", n, err)
		}
		img, err := c.ImageService().Get(ctx, ref.String())
		if errdefs.IsNotFound(err) {
			return fmt.Errorf("export %s: it is not in this node's store; `umiak images list` shows what is", n)
		}
		if err != nil {
			return fmt.Errorf("export %s: %w", n, err)
		}
		// Content for other platforms may be missing; content for this one must not.
		if err := complete(ctx, c.ContentStore(), img); err != nil {
			return fmt.Errorf("export %s: %w", n, err)
		}
		opts = append(opts, archive.WithImages([]images.Image{img}))
	}
	if file == "-" {
		return c.Export(ctx, stdout, opts...)
	}
	out, err := create(file)
	if err != nil {
		return fmt.Errorf("export to %s: %w", file, err)
	}
	defer func() {
		if err = errors.Join(err, out.close()); err != nil {
			err = fmt.Errorf("export to %s: %w", file, err)
		}
	}()
	z, err := compressor(out, file)
	if err != nil {
		return err
	}
	if err := errors.Join(c.Export(ctx, z, opts...), z.Close()); err != nil {
		return err
	}
	return out.commit()
}

// complete returns an error if the store lacks content that this machine needs of an image.
func complete(ctx context.Context, store content.Provider, img images.Image) error {
	there, _, _, missing, err := images.Check(ctx, store, img.Target, platforms.Default())
	if err == nil && (!there || len(missing) > 0) {
		err = errors.New("this node's store lacks content of the image")
	}
	return err
}

// compressor returns a writer with the compression that the file's name asks for.
func compressor(w io.Writer, name string) (io.WriteCloser, error) {
	is := func(endings ...string) bool {
		return slices.ContainsFunc(endings, func(e string) bool { return strings.HasSuffix(strings.ToLower(name), e) })
	}
	switch {
	case is(".gz", ".tgz", ".gzip"):
		return gzip.NewWriter(w), nil
	case is(".zst", ".tzst", ".zstd"):
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	case is(".xz", ".txz", ".bz2", ".tbz2", ".tbz", ".lz4", ".lzma", ".lz", ".z", ".br", ".zip"):
		return nil, fmt.Errorf("%s is not supported for export; use .tar, .tar.gz or .tar.zst", filepath.Ext(name))
	}
	return nopCloser{w}, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
