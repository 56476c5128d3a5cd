package output_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/output"
)

func TestColumnsAreAligned(t *testing.T) {
	var b strings.Builder
	table := output.NewTable(&b, "NAME", "STATE")
	fmt.Fprintf(table, "%s\t%s\n", "pi-in-the-shed", "ready")
	if err := table.Flush(); err != nil {
		t.Fatal(err)
	}
	if want := "NAME            STATE\npi-in-the-shed  ready\n"; b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestAFullDiskIsAnError(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	if err := output.NewTable(full, "NAME").Flush(); err == nil {
		t.Error("a table on a full disk: no error")
	}
	if err := output.JSON(full, 1); err == nil {
		t.Error("JSON on a full disk: no error")
	}
	if err := output.JSON(&strings.Builder{}, func() {}); err == nil || errors.Is(err, os.ErrClosed) {
		t.Errorf("what JSON cannot hold: %v", err)
	}
}
