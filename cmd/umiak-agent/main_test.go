package main

import (
	"bytes"
	"io"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/internal/testing/clitest"
)

func TestCommandLines(t *testing.T) {
	clitest.Check(t, clitest.Program{
		Name: "umiak-agent", App: func() *cli.App { return app(io.Discard, io.Discard) },
		Run: func(argv []string, stdout, stderr *bytes.Buffer) int { return run(t.Context(), argv, stdout, stderr) },
	})
}
