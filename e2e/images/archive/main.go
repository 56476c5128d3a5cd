// Command archive writes the tests' container images for an architecture into an archive, as a user without internet
// has them. scripts/emulate calls it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/umiak-io/umiak/e2e/images"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "archive:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("archive", flag.ContinueOnError)
	arch := f.String("arch", "arm64", "what the images are for, as Go names it")
	busybox := f.String("busybox", "", "a static busybox for that architecture")
	out := f.String("o", "", "the archive; .oci.tar is an OCI layout, other names what docker save writes")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *busybox == "" || *out == "" {
		return fmt.Errorf("-busybox and -o are needed")
	}
	set, err := images.BuildFor(ctx, *arch, *busybox)
	if err != nil {
		return err
	}
	return set.Write(*out, images.App1, images.App2)
}
