package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const pass = `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n" + `{"Action":"pass","Package":"p","Elapsed":0.5}` + "\n"
	for _, tt := range []struct{ name, events, want, err string }{
		{"passed", pass, "ok    p  0.5s\n1 passed, 0 failed, 0 skipped", ""},
		{"skipped", pass + `{"Action":"skip","Package":"p","Test":"TestB"}`, "ok    p  0.5s\nSKIP  p TestB\n1 passed, 0 failed, 1 skipped", "1 tests were skipped"},
		{"failed", `{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:1: bad\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p","Elapsed":1}`, "    a_test.go:1: bad\nFAIL  p  1.0s\n0 passed, 1 failed, 0 skipped", "1 tests failed"},
		{"passed beside a failed one", `{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p","Elapsed":1}`, "FAIL  p  1.0s\n1 passed", ""},
		{"killed", `{"Action":"output","Package":"p","Test":"TestA","Output":"panic: bad\n"}
{"Action":"fail","Package":"p","Elapsed":1}`, "panic: bad\nFAIL  p  1.0s\n0 passed", "no test ran"},
		{"does not build", `{"Action":"build-output","ImportPath":"p","Output":"a.go:1: bad\n"}` + "\n" + pass, "a.go:1: bad\nok    p", ""},
		{"no tests", `{"Action":"skip","Package":"p"}`, "0 passed, 0 failed, 0 skipped", "no test ran"},
		{"nothing", "", "0 passed", "no test ran"},
		{"no event", "go: no such module\n" + pass, "go: no such module\nok", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			r := report{out: &out, said: make(map[test]*strings.Builder)}
			if err := r.read(strings.NewReader(tt.events)); err != nil {
				t.Fatal(err)
			}
			err := r.total()
			if got := out.String(); !strings.HasPrefix(got, tt.want) {
				t.Errorf("printed %q, want %q", got, tt.want)
			}
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || err.Error() != tt.err) {
				t.Errorf("returned %v, want %q", err, tt.err)
			}
		})
	}
}

func TestRunFailsWithGoTest(t *testing.T) {
	var out, errOut strings.Builder
	if err := run([]string{"./no-such-package"}, &out, &errOut); err == nil {
		t.Errorf("no error, printed %q and %q", out.String(), errOut.String())
	}
}
