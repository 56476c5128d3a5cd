package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// ImportOptions are the choices of `umiak images import`.
type ImportOptions struct {
	// AllPlatforms keeps the content for other machines too, so that it can be exported again.
	AllPlatforms bool
}

// Import imports archives and writes what it does to progress. A broken archive does not keep the
// others from being imported. "-" is the standard input.
func Import(ctx context.Context, socket string, paths []string, opts ImportOptions, progress io.Writer) error {
	c, err := Connect(socket)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // a connection, all is done
	var errs []error
	for _, path := range paths {
		f, id := os.Stdin, identity{}
		if path != "-" {
			if f, id, err = open(path); err != nil {
				errs = append(errs, fmt.Errorf("import %s: %w", path, err))
				continue
			}
		}
		fmt.Fprintf(progress, "importing %s%s\n", path, megabytes(id.Size))
		begun, said := time.Now(), time.Now()
		got, err := importFile(ctx, c, f, importOptions{allPlatforms: opts.AllPlatforms, progress: func(n int64) {
			if time.Since(said) > 2*time.Second && id.Size > 0 {
				said = time.Now()
				fmt.Fprintf(progress, "  %d%%\n", n*100/id.Size)
			}
		}})
		if path != "-" {
			_ = f.Close()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("import %s: %w", path, err))
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(got.Images)) {
			fmt.Fprintf(progress, "  %s\n", name)
		}
		fmt.Fprintf(progress, "  done in %s\n", time.Since(begun).Round(10*time.Millisecond))
	}
	return errors.Join(errs...)
}

func megabytes(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.1f MB)", float64(n)/1e6)
}

// Image is one line of List.
type Image struct {
	Name    string    `json:"name"`
	Digest  string    `json:"digest"`
	Size    int64     `json:"size"` // as stored, compressed
	Pinned  bool      `json:"pinned"`
	Created time.Time `json:"created"` // in this store
}

// List writes the node's images as aligned lines, or as JSON for the output "json".
func List(ctx context.Context, socket, output string, w io.Writer) error {
	if output != "" && output != "json" {
		return fmt.Errorf("output %q is not json", output)
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
		// The CRI service keeps every image under its id and its digest as well.
		if strings.HasPrefix(name, "sha256:") || strings.Contains(name, "@") {
			continue
		}
		size, err := img.Size(ctx)
		if err != nil {
			size = 0 // content is missing: still an image in the list
		}
		list = append(list, Image{Name: name, Digest: img.Target().Digest.String(), Size: size,
			Pinned: img.Labels()[pinnedLabel] == pinnedValue, Created: img.Metadata().CreatedAt})
	}
	slices.SortFunc(list, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(list)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tDIGEST\tSIZE\tPINNED")
	for _, i := range list {
		fmt.Fprintf(t, "%s\t%.19s\t%.1f MB\t%v\n", i.Name, i.Digest, float64(i.Size)/1e6, i.Pinned)
	}
	return t.Flush()
}

// Export writes images into an archive that Import, docker and ctr can read: to the file named, which
// appears when it is whole and is compressed if its name ends with .gz, .tgz or .zst, or to stdout for "-".
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
	opts := []archive.ExportOpt{archive.WithPlatform(platforms.Default())}
	for _, n := range names {
		ref, err := reference.ParseDockerRef(n)
		if err != nil {
			return fmt.Errorf("export %s: %w", n, err)
		}
		opts = append(opts, archive.WithImage(c.ImageService(), ref.String()))
	}
	if file == "-" {
		return c.Export(ctx, stdout, opts...)
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".umiak-export-")
	if err != nil {
		return fmt.Errorf("export to %s: %w", file, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("export to %s: %w", file, errors.Join(err, os.Remove(tmp.Name())))
		}
	}()
	z, err := compressor(tmp, file)
	if err != nil {
		return err
	}
	if err := errors.Join(c.Export(ctx, z, opts...), z.Close(), tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}

// compressor chooses by the file's name.
func compressor(w io.Writer, name string) (io.WriteCloser, error) {
	switch {
	case strings.HasSuffix(name, ".gz"), strings.HasSuffix(name, ".tgz"):
		return gzip.NewWriter(w), nil
	case strings.HasSuffix(name, ".zst"):
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	}
	return nopCloser{w}, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
