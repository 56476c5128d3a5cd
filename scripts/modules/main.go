// Command modules says what the programs of a release are made of, for scripts/release: the licences of everything that
// is linked in them, and a CycloneDX bill of materials. It reads what the Go linker noted in the programs themselves,
// so it lists what is there and not what go.mod would allow.
//
// The same programs give the same bytes: there is no clock and no random number in it.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
)

const usage = `modules licenses [-linked DIR,...] -o FILE NAME=PROGRAM...
modules sbom     [-linked DIR,...] -o FILE -name NAME -version VERSION NAME=PROGRAM...

  -linked DIR  holds a folder NAME@VERSION for each library that is no Go module, with its licence files
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stderr, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "modules:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, stderr io.Writer, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("say what to do:\n%s", usage)
	}
	what := args[0]
	flags := flag.NewFlagSet("modules "+what, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	var (
		out     = flags.String("o", "", "file to write")
		folders = flags.String("linked", "", "folders of libraries that are no Go modules")
		name    = flags.String("name", "umiak", "name of the release")
		version = flags.String("version", "", "version of the release")
	)
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if *out == "" || flags.NArg() == 0 {
		return fmt.Errorf("no file to write or no program to read:\n%s", usage)
	}
	programs, err := readPrograms(flags.Args())
	if err != nil {
		return err
	}
	libraries, err := readLibraries(strings.FieldsFunc(*folders, func(r rune) bool { return r == ',' }))
	if err != nil {
		return err
	}
	var b bytes.Buffer
	switch what {
	case "licenses":
		parts, err := licensed(ctx, programs, libraries)
		if err != nil {
			return err
		}
		err = writeLicenses(&b, parts)
		if err != nil {
			return err
		}
	case "sbom":
		if err := writeSBOM(&b, *name, *version, programs, libraries); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%q is neither licenses nor sbom:\n%s", what, usage)
	}
	return os.WriteFile(*out, b.Bytes(), 0o644)
}
