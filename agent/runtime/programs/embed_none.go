//go:build !bundle

package programs

var (
	archive   []byte
	archiveID string
)
