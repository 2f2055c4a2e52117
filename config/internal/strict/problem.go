package strict

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxProblems is how many problems an Error names at most.
const MaxProblems = 10

// Error is what is wrong with some files.
type Error struct {
	// Problems are 1 to MaxProblems, by file and position.
	Problems []Problem
	// Hashes are the SHA-256 of the files that could be read, in hex, by their
	// paths.
	Hashes map[string]string
}

// Error returns the problems, one a line.
func (e *Error) Error() string {
	lines := make([]string, 0, len(e.Problems)+1)
	for _, p := range e.Problems {
		lines = append(lines, p.String())
	}
	if len(lines) == MaxProblems {
		lines = append(lines, "there may be more")
	}
	return strings.Join(lines, "\n")
}

// Problem is one thing wrong with a file.
type Problem struct {
	// File is its path.
	File string
	// Line and Column count from 1; 0 where none is known.
	Line, Column int
	// Path is the field, such as "limits.unary_bytes" or "keks[3].url". It
	// is empty where the problem is the file.
	Path string
	// Text says what is wrong.
	Text string
}

// String returns "file:line:column: path: text", without what is not known.
func (p Problem) String() string {
	s := p.File
	if p.Line > 0 {
		s += ":" + strconv.Itoa(p.Line)
		if p.Column > 0 {
			s += ":" + strconv.Itoa(p.Column)
		}
	}
	if p.Path != "" {
		s += ": " + p.Path
	}
	return s + ": " + p.Text
}

// Problems collects up to MaxProblems of them.
type Problems []Problem

// Full reports whether no more are taken.
func (ps *Problems) Full() bool { return len(*ps) >= MaxProblems }

// Add takes a problem unless it is there already, or there are enough.
func (ps *Problems) Add(p Problem) {
	if !ps.Full() && !slices.Contains(*ps, p) {
		*ps = append(*ps, p)
	}
}

// Err returns an *Error with the problems in order, nil if there are none.
// Hashes are Error.Hashes.
func (ps *Problems) Err(hashes map[string]string) error {
	if len(*ps) == 0 {
		return nil
	}
	slices.SortStableFunc(*ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return &Error{Problems: *ps, Hashes: hashes}
}

// path is where in a file a value is. It is a list so that a large file costs
// no strings.
type path struct {
	up    *path
	key   string // of a mapping, "" in a sequence
	index int
}

func (p *path) String() string {
	switch {
	case p == nil:
		return ""
	case p.key == "":
		return fmt.Sprintf("%s[%d]", p.up, p.index)
	case p.up == nil:
		return p.key
	}
	return p.up.String() + "." + p.key
}
