// Package reader reads the lines of audit logs from directories and streams.
package reader

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/keysidecar/keysidecar/audit/record"
)

// Line is one line of a source.
type Line struct {
	// Source is the file's path, or "-" for standard input.
	Source string
	// Number is the line's number in its source, from 1. Of a stream it counts
	// all lines, also those that are left out.
	Number int
	// Text is the line without its line feed and, in a stream, without what the
	// container's runtime wrote before it. Of a line that is too long it is the
	// beginning. It is valid during the call; Record.Event is a part of it.
	Text []byte
	// Record is the record; nil if Err is not.
	Record *record.Record
	// Err says why the line is not a record: record.ErrMalformed.
	Err error
	// Ordered says that the source is a file of a directory: it has the lines of
	// a log as they were written. A stream may have them twice, and in any order.
	Ordered bool
	// Torn says that the line is the last of its source and has no line feed.
	Torn bool
}

// ErrChanged says that files of a log were removed while it was read: read again.
var ErrChanged = errors.New("the directory changed while it was read: try again")

// marker is how the lines of a log begin.
const marker = `{"log":"keysidecar/`

// bufferSize has room for a line and for what is before it in a stream.
const bufferSize = record.MaxLine + 512

// Read calls each for every line of the paths, one after another. A path is a
// directory, whose *.jsonl files are read by log and number of the first record;
// or a file, or "-" for stdin, which is a stream: lines that do not begin as
// records do are left out, and prefixes of the CRI log format are removed. An
// error of each ends the reading and is returned as it is; ErrChanged says that a
// sidecar removed files meanwhile. Memory is bounded, whatever is read.
func Read(paths []string, stdin io.Reader, each func(Line) error) error {
	for _, path := range paths {
		if err := readPath(path, stdin, each); err != nil {
			return err
		}
	}
	return nil
}

func readPath(path string, stdin io.Reader, each func(Line) error) error {
	if path == "-" {
		return readLines(stdin, Line{Source: path}, each)
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("reading an audit log: %w", err)
	}
	if !info.IsDir() {
		return readFile(Line{Source: path}, each)
	}
	return readDir(path, each)
}

// mostLists is how often a directory is listed, at most.
const mostLists = 10

// readDir reads the files of a directory. If one is not there any more, as the
// sidecar removes old ones, it goes on with those that are.
func readDir(path string, each func(Line) error) error {
	last := "" // the name of the file read before
	for range mostLists {
		names, err := list(path)
		if err != nil {
			return err
		}
		gone := ""
		for _, name := range names {
			if last != "" && compareNames(name, last) <= 0 {
				continue
			}
			file, err := os.Open(filepath.Join(path, name))
			if errors.Is(err, fs.ErrNotExist) {
				gone = name
				break
			}
			if err != nil {
				return fmt.Errorf("reading an audit log: %w", err)
			}
			last = name
			if err := readOpen(file, Line{Source: file.Name(), Ordered: true}, each); err != nil {
				return err
			}
		}
		if gone == "" {
			return nil
		}
		if sameLog(gone, last) {
			return fmt.Errorf("%w: %s was removed after files before it were read", ErrChanged, filepath.Join(path, gone))
		}
	}
	return fmt.Errorf("%w: %s was listed %d times, and each time a file was removed", ErrChanged, path, mostLists)
}

func sameLog(a, b string) bool {
	aLog, _ := splitName(a)
	bLog, _ := splitName(b)
	return aLog == bLog
}

// list returns the names of the files of a directory, those of one log one after another.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the directory of an audit log: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), suffix) {
			continue
		}
		if !entry.Type().IsRegular() {
			return nil, fmt.Errorf("reading the directory of an audit log: %s is not a regular file", filepath.Join(dir, entry.Name()))
		}
		names = append(names, entry.Name())
	}
	slices.SortFunc(names, compareNames)
	return names, nil
}

const suffix = ".jsonl"

// compareNames orders names such as 20261122T093000Z-1a2b3c4d5e6f.000000000000.jsonl.
func compareNames(a, b string) int {
	aLog, aSeq := splitName(a)
	bLog, bSeq := splitName(b)
	return cmp.Or(strings.Compare(aLog, bLog), cmp.Compare(aSeq, bSeq), strings.Compare(a, b))
}

func splitName(name string) (log string, seq int64) {
	name = strings.TrimSuffix(name, suffix)
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		if n, err := strconv.ParseInt(name[i+1:], 10, 64); err == nil {
			return name[:i], n
		}
	}
	return name, 0
}

func readFile(l Line, each func(Line) error) error {
	file, err := os.Open(l.Source)
	if err != nil {
		return fmt.Errorf("reading an audit log: %w", err)
	}
	return readOpen(file, l, each)
}

func readOpen(file *os.File, l Line, each func(Line) error) error {
	defer file.Close()
	return readLines(file, l, each)
}

// readLines reads one source; l says which.
func readLines(from io.Reader, l Line, each func(Line) error) error {
	r := bufio.NewReaderSize(from, bufferSize)
	for l.Number = 1; ; l.Number++ {
		text, err := r.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		if long {
			text = bytes.Clone(text)
			err = skipLine(r)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading line %d of %s: %w", l.Number, l.Source, err)
		}
		if len(text) == 0 { // the end
			return nil
		}
		l.Torn = err != nil
		l.Text = bytes.TrimSuffix(text, []byte{'\n'})
		if err := l.deliver(long, each); err != nil {
			return err
		}
		if l.Torn {
			return nil
		}
	}
}

// skipLine reads to the end of a line.
func skipLine(r *bufio.Reader) error {
	for {
		if _, err := r.ReadSlice('\n'); !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// deliver parses the line and hands it over, unless it is another's.
func (l Line) deliver(long bool, each func(Line) error) error {
	if !l.Ordered {
		l.Text = Strip(l.Text)
		if !bytes.HasPrefix(l.Text, []byte(marker)) {
			return nil
		}
	}
	if long {
		l.Err = fmt.Errorf("%w: longer than %d bytes", record.ErrMalformed, record.MaxLine)
	} else {
		l.Record, l.Err = record.Parse(l.Text)
	}
	return each(l)
}

// Strip returns a line of a container's output without what the runtime wrote
// before it: a time, a stream and a tag, as in "2026-11-22T09:30:00.1Z stdout F ".
// Other lines it returns as they are.
func Strip(line []byte) []byte {
	at, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok || len(at) < len("2026-11-22T09:30:00Z") || at[0] < '0' || at[0] > '9' {
		return line
	}
	stream, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok || string(stream) != "stdout" && string(stream) != "stderr" {
		return line
	}
	tag, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok || len(tag) == 0 || tag[0] != 'F' && tag[0] != 'P' {
		return line
	}
	return rest
}
