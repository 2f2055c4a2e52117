package trust

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/keysidecar/keysidecar/audit/reader"
	"github.com/keysidecar/keysidecar/audit/record"
)

// ReadCheckpoints reads checkpoints from a file, or from all files of a directory
// and of those under it. A file has signed notes, one after another, or lines of a
// log that are checkpoints or begin segments; other lines of logs it leaves out.
// A line may be as a collector wraps it: JSON with the line in a field log or
// message. Torn says of which files the last line was left out, because it was
// not written whole.
func ReadCheckpoints(path string) (signed, torn []string, err error) {
	c := checkpoints{}
	err = filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		// What a symbolic link leads to is read if it is a file: so directories are
		// read once, and links in a circle never.
		info, err := os.Stat(name)
		if err != nil || info.IsDir() && name != path {
			return err
		}
		return c.file(name)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reading checkpoints: %w", err)
	}
	return c.signed, c.torn, nil
}

// checkpoints are those of all files.
type checkpoints struct{ signed, torn []string }

func (c *checkpoints) file(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	s := noteScanner{notes: c.signed}
	lines := bufio.NewReaderSize(file, maxLine)
	for number := 1; ; number++ {
		line, err := lines.ReadSlice('\n')
		last := errors.Is(err, io.EOF)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("line %d of %s is longer than %d bytes", number, path, maxLine)
		case err != nil && !last:
			return fmt.Errorf("line %d of %s: %w", number, path, err)
		}
		line, whole := bytes.CutSuffix(line, []byte{'\n'})
		err = s.line(line, whole)
		begun := s.begun()
		if err == nil && last {
			err = s.end()
		}
		switch {
		case err != nil && last && (begun || len(line) > 0):
			c.torn = append(c.torn, path)
		case err != nil:
			return fmt.Errorf("line %d of %s: %w", number, path, err)
		}
		if last {
			c.signed = s.notes
			return nil
		}
	}
}

// maxLine bounds a line of a file: one of a log, wrapped once or twice.
const maxLine = 64 << 10

// maxNote bounds a note: checkpoints are shorter.
const maxNote = record.MaxLine

// noteScanner collects signed notes from lines.
type noteScanner struct {
	notes  []string
	note   []byte // the one being read
	signed bool   // it has a signature
}

// signaturePrefix begins a signature's line (C2SP signed-note).
const signaturePrefix = "— "

// line takes a line. Whole says that it has its line feed.
func (s *noteScanner) line(line []byte, whole bool) error {
	signature := bytes.HasPrefix(line, []byte(signaturePrefix))
	if signature && !whole && !wholeSignature(line) {
		s.note, s.signed = s.note[:0], false
		return errors.New("its signature is not there to the end")
	}
	if s.signed && !signature {
		if err := s.end(); err != nil {
			return err
		}
	}
	if len(s.note) == 0 {
		if text := reader.Strip(bytes.TrimSpace(line)); bytes.HasPrefix(text, []byte{'{'}) {
			return s.json(text)
		}
		if len(bytes.TrimSpace(line)) == 0 {
			return nil
		}
	}
	if len(s.note)+len(line) > maxNote {
		return fmt.Errorf("%w: it is longer than %d bytes", record.ErrCheckpoint, maxNote)
	}
	s.note = append(append(s.note, line...), '\n')
	s.signed = signature
	return nil
}

// wholeSignature reports whether nothing of an Ed25519 signature and its key's ID
// is cut off.
func wholeSignature(line []byte) bool {
	text := string(line[bytes.LastIndexByte(line, ' ')+1:])
	raw, err := base64.StdEncoding.DecodeString(text)
	return err == nil && len(raw) == 4+64
}

// marker is how the lines of a log begin.
const marker = `{"log":"keysidecar/`

// json takes a line of a log, as it is or wrapped.
func (s *noteScanner) json(line []byte) error {
	if bytes.HasPrefix(line, []byte(marker)) {
		return s.record(line)
	}
	var wrapped struct{ Log, Message *string }
	if err := json.Unmarshal(line, &wrapped); err != nil {
		return fmt.Errorf("it begins as JSON, and is none that has a line of a log in a field log or message: %w", err)
	}
	for _, text := range []*string{wrapped.Log, wrapped.Message} {
		if text == nil {
			continue
		}
		if inner := reader.Strip(bytes.TrimSpace([]byte(*text))); bytes.HasPrefix(inner, []byte(marker)) {
			return s.record(inner)
		}
	}
	if wrapped.Log == nil && wrapped.Message == nil {
		return errors.New("it is JSON, and neither a line of a log nor has one in a field log or message: " +
			"extract the lines that begin with " + marker)
	}
	return nil // other output
}

// record takes the checkpoint from a line of a log.
func (s *noteScanner) record(line []byte) error {
	r, err := record.Parse(line)
	if err != nil {
		return err
	}
	if r.Pruned() {
		return nil
	}
	if !r.Intact() {
		return fmt.Errorf("%w: its event is not the one that was written", record.ErrMalformed)
	}
	e, err := record.ParseEvent(r.Event)
	if err != nil {
		return err
	}
	if e.Kind == record.CheckpointMade || e.Kind == record.Segment {
		s.notes = append(s.notes, e.Note)
	}
	return nil
}

// begun reports whether the note that is being read can be the beginning of one.
func (s *noteScanner) begun() bool {
	return bytes.HasPrefix(s.note, []byte("keysidecar/")) && !s.signed && !bytes.ContainsRune(s.note, '{') &&
		bytes.Count(s.note, []byte{'\n'}) <= 5
}

// end ends the note that is being read.
func (s *noteScanner) end() error {
	if len(s.note) == 0 {
		return nil
	}
	text := string(s.note)
	signed := s.signed
	s.note, s.signed = s.note[:0], false
	if !signed {
		return fmt.Errorf("%w: %.60q has no signature, and is no line of a log", record.ErrCheckpoint, strings.TrimSpace(text))
	}
	if _, err := record.ParseCheckpoint(text); err != nil {
		return err
	}
	s.notes = append(s.notes, text)
	return nil
}
