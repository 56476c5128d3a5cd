//go:build bundle

package programs

import _ "embed"

//go:embed programs_riscv64.tar.zst
var archive []byte

//go:embed programs_riscv64.id
var archiveID string
