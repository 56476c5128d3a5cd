//go:build bundle

package bundle

import _ "embed"

//go:embed programs_arm.tar.zst
var archive []byte

//go:embed programs_arm.id
var archiveID string
