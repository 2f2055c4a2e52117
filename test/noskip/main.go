// Command noskip runs go test with the arguments given and fails when a test
// was skipped, or none ran.
//
// It prints what failed tests said, a line for each package, and last how many tests passed, failed and were skipped. It is a module of
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
	r := report{out: out, said: make(map[test]*strings.Builder)}
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

// A test is named by its package and its name, which is empty for what the
// package says itself.
type test struct{ pkg, name string }

// A report is made of the events of one run.
type report struct {
	out                      io.Writer
	said                     map[test]*strings.Builder // until it has passed
	packages, passed, failed int
	skipped                  []string
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
		id := test{e.Package, e.Test}
		if r.said[id] == nil {
			r.said[id] = new(strings.Builder)
		}
		r.said[id].WriteString(e.Output)
	case e.Test != "":
		r.count(e)
	case e.Action == "pass" || e.Action == "fail" || e.Action == "skip":
		r.finish(e)
	}
}

func (r *report) count(e event) {
	id := test{e.Package, e.Test}
	switch e.Action {
	case "pass":
		r.passed++
		delete(r.said, id)
	case "fail":
		r.failed++
		r.print(id)
	case "skip":
		r.skipped = append(r.skipped, e.Package+" "+e.Test)
		delete(r.said, id)
	}
}

// finish prints what there is to say of a package. Its action is skip when it
// has no tests, which is no skipped test. A test that has neither passed nor
// failed was running when its package ended.
func (r *report) finish(e event) {
	switch e.Action {
	case "pass":
		r.packages++
		fmt.Fprintf(r.out, "ok    %s  %.1fs\n", e.Package, e.Elapsed)
	case "fail":
		r.packages++
		for id := range r.said {
			if id.pkg == e.Package {
				r.print(id)
			}
		}
		fmt.Fprintf(r.out, "FAIL  %s  %.1fs\n", e.Package, e.Elapsed)
	}
	delete(r.said, test{e.Package, ""})
}

// print prints what a test said, but for the lines that only say that it runs.
func (r *report) print(id test) {
	said := r.said[id]
	delete(r.said, id)
	if said == nil {
		return
	}
	for line := range strings.Lines(said.String()) {
		if !strings.HasPrefix(line, "=== ") && line != "FAIL\n" {
			fmt.Fprint(r.out, line)
		}
	}
}

// total prints the last lines and returns why the run is not good enough.
func (r *report) total() error {
	for _, name := range r.skipped {
		fmt.Fprintf(r.out, "SKIP  %s\n", name)
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
