// Command isolate makes an isolated machine that outlives it, for scripts and for people who want to look
// around in one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/umiak-io/umiak/e2e/machine"
)

const usage = `isolate up [--name NAME] [--bin DIR]       makes a machine and prints its ID
isolate exec ID -- CMD...                  runs CMD in it
isolate start ID --log FILE -- CMD...      runs CMD in it in the background and prints its process id
isolate poweroff ID | boot ID              kills all that runs in it; starts it again with its disks
isolate down ID                            takes it away
isolate sweep                              takes away what killed tests left`

func main() { os.Exit(exit(run(context.Background(), os.Args[1:]))) }

func exit(err error) int {
	var e *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e) && e.ExitCode() > 0:
		return e.ExitCode()
	}
	_, _ = fmt.Fprintln(os.Stderr, "isolate:", err)
	return 1
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("usage:\n" + usage)
	}
	switch cmd, rest := args[0], args[1:]; cmd {
	case "up":
		f := flag.NewFlagSet("up", flag.ContinueOnError)
		name, bin := f.String("name", "umiak", "host name"), f.String("bin", "", "folder to show on the machine's PATH")
		if err := f.Parse(rest); err != nil {
			return err
		}
		m, err := machine.New(machine.Options{Name: *name, Bin: *bin, Persist: true})
		if err == nil {
			fmt.Println(m.ID)
		}
		return err
	case "sweep":
		return machine.Sweep()
	case "exec", "start", "down", "poweroff", "boot":
		if len(rest) == 0 {
			return errors.New(cmd + " takes the ID that `isolate up` printed")
		}
		m, err := machine.Open(rest[0])
		if err != nil {
			return err
		}
		switch cmd {
		case "down":
			return m.Destroy()
		case "poweroff":
			return m.PowerOff()
		case "boot":
			return m.Boot()
		}
		return execute(ctx, m, cmd == "start", rest[1:])
	}
	return fmt.Errorf("no command %q; usage:\n%s", args[0], usage)
}

func execute(ctx context.Context, m *machine.Machine, background bool, args []string) error {
	f := flag.NewFlagSet("exec", flag.ContinueOnError)
	log := f.String("log", "", "file for the output")
	if err := f.Parse(args); err != nil {
		return err
	}
	argv := f.Args()
	if len(argv) == 0 {
		return errors.New("there is no command to run behind --")
	}
	cmd := m.Command(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = io.Writer(os.Stdout), io.Writer(os.Stderr)
	if *log != "" {
		w, err := os.OpenFile(*log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer w.Close() //nolint:errcheck // the child writes to it
		cmd.Stdout, cmd.Stderr = w, w
	}
	if !background {
		cmd.Stdin = os.Stdin
	}
	if err := m.Start(cmd); err != nil {
		return err
	}
	if background {
		fmt.Println(cmd.Process.Pid)
		return nil
	}
	return cmd.Wait()
}
