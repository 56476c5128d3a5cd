//go:build !bundle

package bundle

var (
	archive   []byte
	archiveID string
)
