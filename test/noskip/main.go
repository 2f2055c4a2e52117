// Command noskip runs go test with the arguments given and fails when a test
// was skipped, or none ran.
//
// It prints a line for each package, everything that a failed package said,
// and last how many tests passed, failed and were skipped. It is a module of
// its own so that it needs nothing but Go.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "noskip:", err)
		os.Exit(1)
	}
}

// run is go test -json with args. Its events go to a report on out.
func run(args []string, out, errOut io.Writer) error {
	cmd := exec.CommandContext(context.Background(), "go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = errOut
	events, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r := report{out: out, said: make(map[string]*strings.Builder)}
	readErr := r.read(events)
	if err := errors.Join(readErr, cmd.Wait()); err != nil {
		return errors.Join(fmt.Errorf("running go test: %w", err), r.total())
	}
	return r.total()
}

// An event is what test2json writes: go doc test2json.
type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64
}

// A report is made of the events of one run.
type report struct {
	out                                io.Writer
	said                               map[string]*strings.Builder // output by package
	packages, passed, failed, untested int
	skipped                            []string
}

// read takes events, one a line, until their end. Lines that are no events
// are printed.
func (r *report) read(events io.Reader) error {
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		if json.Unmarshal(line, &e) == nil {
			r.take(e)
		} else if len(line) > 0 {
			fmt.Fprintf(r.out, "%s", line)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading events: %w", err)
		}
	}
}

func (r *report) take(e event) {
	switch {
	case e.Action == "build-output":
		fmt.Fprint(r.out, e.Output)
	case e.Action == "output":
		if r.said[e.Package] == nil {
			r.said[e.Package] = new(strings.Builder)
		}
		r.said[e.Package].WriteString(e.Output)
	case e.Test != "":
		r.count(e)
	case e.Action == "pass" || e.Action == "fail" || e.Action == "skip":
		r.finish(e)
	}
}

func (r *report) count(e event) {
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
	case "skip":
		r.skipped = append(r.skipped, e.Package+" "+e.Test)
	}
}

// finish prints what there is to say of a package. Its action is skip when it
// has no tests, which is no skipped test.
func (r *report) finish(e event) {
	said := r.said[e.Package]
	delete(r.said, e.Package)
	switch e.Action {
	case "pass":
		r.packages++
		fmt.Fprintf(r.out, "ok    %s  %.1fs\n", e.Package, e.Elapsed)
	case "skip":
		r.untested++
	case "fail":
		r.packages++
		if said != nil {
			fmt.Fprint(r.out, quiet(said.String()))
		}
		fmt.Fprintf(r.out, "FAIL  %s  %.1fs\n", e.Package, e.Elapsed)
	}
}

// quiet leaves out the lines of go test -v that say that a test goes well.
func quiet(said string) string {
	var b strings.Builder
	for line := range strings.Lines(said) {
		text := strings.TrimLeft(line, " ")
		if strings.HasPrefix(text, "=== ") || strings.HasPrefix(text, "--- PASS") || text == "PASS\n" || text == "FAIL\n" {
			continue
		}
		b.WriteString(line)
	}
	return b.String()
}

// total prints the last lines and returns why the run is not good enough.
func (r *report) total() error {
	for _, test := range r.skipped {
		fmt.Fprintf(r.out, "SKIP  %s\n", test)
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped (tests and subtests of %d packages)\n",
		r.passed, r.failed, len(r.skipped), r.packages)
	switch {
	case r.failed > 0:
		return fmt.Errorf("%d tests failed", r.failed)
	case len(r.skipped) > 0:
		return fmt.Errorf("%d tests were skipped", len(r.skipped))
	case r.passed == 0:
		return errors.New("no test ran")
	}
	return nil
}
