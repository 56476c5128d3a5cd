package images

import (
	"context"
	"fmt"
	"strings"

	"github.com/umiak-io/umiak/internal/status"
)

var _ status.Reporter = (*Importer)(nil)

// Section reports every archive in the folder.
func (i *Importer) Section(context.Context) status.Section {
	out := status.Section{Name: "Image archives"}
	for _, s := range i.Status() {
		out.Rows = append(out.Rows, status.Row{Name: s.File, State: string(s.State), Detail: s.detail()})
	}
	return out
}

// detail returns what the state alone does not show.
func (s Status) detail() string {
	switch {
	case s.Error != "":
		return s.Error
	case s.State == Importing:
		return fmt.Sprintf("%d of %d MB", s.Read>>20, s.Size>>20)
	}
	return strings.Join(s.Images, ", ")
}
