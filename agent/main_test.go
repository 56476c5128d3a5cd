package agent

import (
	"os"
	"syscall"
	"testing"

	"github.com/umiak-io/umiak/internal/testing/testns"
)

func TestMain(m *testing.M) { os.Exit(testns.Run(m.Run, syscall.CLONE_NEWNS)) }
