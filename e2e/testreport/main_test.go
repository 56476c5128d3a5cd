package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	const in = `building
{"Action":"run","Package":"a/b","Test":"TestA"}
{"Action":"output","Package":"a/b","Test":"TestA","Output":"quiet\n"}
{"Action":"pass","Package":"a/b","Test":"TestA","Elapsed":2}
{"Action":"output","Package":"a/c","Test":"TestA","Output":"of another package\n"}
{"Action":"output","Package":"a/b","Test":"TestB/part","Output":"why\n"}
{"Action":"fail","Package":"a/b","Test":"TestB/part","Elapsed":9}
{"Action":"output","Package":"a/b","Test":"TestD/part","Output":"    d_test.go:3: needs SCTP\n"}
{"Action":"output","Package":"a/b","Test":"TestD/part","Output":"    --- SKIP: TestD/part (0.00s)\n"}
{"Action":"skip","Package":"a/b","Test":"TestD/part","Elapsed":0}
{"Action":"pass","Package":"a/b","Test":"TestD","Elapsed":1}
{"Action":"fail","Package":"a/b","Test":"TestB","Elapsed":10.04}
{"Action":"output","Package":"a/b","Test":"TestC","Output":"hangs\n"}
{"Action":"pass","Package":"a/c","Test":"TestA","Elapsed":0.1}
{"Action":"output","Package":"a/b","Output":"FAIL\n"}
{"Action":"output","Package":"a/c","Output":"PASS\n"}
{"Action":"output","Package":"a/c","Output":"ok  \ta/c\t0.1s\n"}
{"Action":"fail","Package":"a/b","Elapsed":12}
{"Action":"skip","Package":"a/none","Elapsed":0}
`
	const want = `building
why
FAIL
ok  	a/c	0.1s
hangs

4 tests, 13s together; the slowest:
     10s  fail  TestB
      2s  pass  TestA
      1s  pass  TestD
   100ms  pass  TestA
`
	file := filepath.Join(t.TempDir(), "skipped")
	var out strings.Builder
	if err := run(strings.NewReader(in), &out, false, true, file); err != nil || out.String() != want {
		t.Errorf("%v\n%s", err, out.String())
	}
	if raw, err := os.ReadFile(file); string(raw) != "b TestD/part: d_test.go:3: needs SCTP\n" {
		t.Errorf("skipped: %q, %v", raw, err)
	}
	out.Reset()
	if err := run(strings.NewReader(in), &out, true, false, ""); err != nil ||
		!strings.Contains(out.String(), "quiet\n") ||
		strings.Count(out.String(), "why\n") != 1 || strings.Contains(out.String(), "slowest") {
		t.Errorf("%v\n%s", err, out.String())
	}
}
