package main

import (
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	const in = `building
{"Action":"run","Test":"TestA"}
{"Action":"output","Test":"TestA","Output":"quiet\n"}
{"Action":"pass","Test":"TestA","Elapsed":2}
{"Action":"output","Test":"TestB/part","Output":"why\n"}
{"Action":"fail","Test":"TestB/part","Elapsed":9}
{"Action":"fail","Test":"TestB","Elapsed":10.04}
{"Action":"output","Test":"TestC","Output":"hangs\n"}
{"Action":"output","Output":"FAIL\n"}
{"Action":"fail","Elapsed":12}
`
	const want = `building
why
FAIL
hangs

2 tests, 12s together; the slowest:
     10s  fail  TestB
      2s  pass  TestA
`
	var out strings.Builder
	if err := run(strings.NewReader(in), &out, false); err != nil || out.String() != want {
		t.Errorf("%v\n%s", err, out.String())
	}
	out.Reset()
	if err := run(strings.NewReader(in), &out, true); err != nil || !strings.Contains(out.String(), "quiet\n") {
		t.Errorf("%v\n%s", err, out.String())
	}
}
