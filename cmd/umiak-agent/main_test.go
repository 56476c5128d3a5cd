package main

import (
	"bytes"
	"io"
	"testing"

	"github.com/urfave/cli/v2"

	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/internal/testing/clitest"
)

func TestCommandLines(t *testing.T) {
	clitest.Check(t, clitest.Program{
		Name: "umiak-agent", App: func() *cli.App {
			a := app(io.Discard, io.Discard)
			agentcli.Strict(a)
			return a
		},
		Run: func(argv []string, stdout, stderr *bytes.Buffer) int { return run(t.Context(), argv, stdout, stderr) },
	})
}
