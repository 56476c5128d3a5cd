//go:build bundle

package programs

import _ "embed"

//go:embed programs_arm.tar.zst
var archive []byte

//go:embed programs_arm.id
var archiveID string
