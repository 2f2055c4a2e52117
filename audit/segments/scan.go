package segments

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/keysidecar/keysidecar/audit/record"
)

// files are the files of a log.
type files struct {
	id     string
	origin string
	all    []*file // by their first records
	// start is the time of the first record that is left. before is the log that
	// it names, and key its key, if it is the log's first.
	start  time.Time
	before string
	key    note.Verifier
}

// file is a file of a log.
type file struct {
	name  string
	log   string // origin
	first int64  // number of its first record
	size  int64  // in bytes; guarded by Dir.mu
	plan  plan   // guarded by Dir.pruning
}

// idOf returns the part of an origin that is in the names of files.
func idOf(origin string) string { return origin[strings.LastIndexByte(origin, '/')+1:] }

const fileSuffix = ".jsonl"

// fileName returns the name of the file of log id that begins with that record.
func fileName(id string, first int64) string { return fmt.Sprintf("%s.%012d%s", id, first, fileSuffix) }

// parseName is the inverse of fileName.
func parseName(name string) (id string, first int64, ok bool) {
	base, ok := strings.CutSuffix(name, fileSuffix)
	dot := strings.LastIndexByte(base, '.')
	if !ok || dot < 1 {
		return "", 0, false
	}
	id = base[:dot]
	first, err := strconv.ParseInt(base[dot+1:], 10, 64)
	if err != nil || first < 0 || fileName(id, first) != name || record.CheckOrigin(id) != nil || idOf(id) != id {
		return "", 0, false
	}
	return id, first, true
}

// scan finds the logs in the directory, and removes what was not finished.
func (d *Dir) scan() error {
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return fmt.Errorf("reading directory: %w", err)
	}
	byID := make(map[string]*files)
	var others []string
	for _, e := range entries {
		name := e.Name()
		id, first, ok := parseName(name)
		switch {
		case name == lockFile, e.IsDir():
		case isTemp(name) && e.Type().IsRegular():
			if err := d.root.Remove(name); err != nil {
				return fmt.Errorf("removing temporary file: %w", err)
			}
		case !ok || !e.Type().IsRegular():
			others = append(others, name)
		default:
			size, err := d.regular(name)
			if err != nil {
				return err
			}
			if byID[id] == nil {
				byID[id] = &files{id: id}
			}
			byID[id].all = append(byID[id].all, &file{name: name, first: first, size: size})
		}
	}
	if l := byID[idOf(d.cfg.Log)]; l != nil {
		return fmt.Errorf("%s is there already: no log is written twice", l.all[0].name)
	}
	return d.identify(byID, others)
}

// identify sorts the logs, and names the files that are of none.
func (d *Dir) identify(byID map[string]*files, others []string) error {
	for _, l := range byID {
		slices.SortFunc(l.all, func(a, b *file) int { return cmp.Compare(a.first, b.first) })
		ok, err := d.identifyLog(l)
		if err != nil {
			return err
		}
		if ok {
			d.logs = append(d.logs, l)
			continue
		}
		for _, f := range l.all {
			others = append(others, f.name)
		}
	}
	d.logs = inOrder(d.logs)
	if len(others) > 0 {
		slices.Sort(others)
		d.cfg.Logger.LogAttrs(context.Background(), slog.LevelWarn,
			"audit directory has files that are no audit log; they are left alone", slog.String("path", d.cfg.Path),
			slog.Int("count", len(others)), slog.Any("first", others[:min(10, len(others))]))
	}
	return nil
}

// identifyLog fills in what the first record says that can be read, and reports
// whether there is one. A file that was begun and has no record yet it removes.
func (d *Dir) identifyLog(l *files) (bool, error) {
	for _, f := range l.all {
		line, whole, err := d.head(f.name)
		if err != nil {
			return false, err
		}
		if !whole && f.first == 0 && len(l.all) == 1 && isTornStart(line) {
			l.all = nil
			d.cfg.Logger.LogAttrs(context.Background(), slog.LevelWarn,
				"audit log that was begun has no whole record; it is removed", slog.String("file", d.path(f.name)),
				slog.Int("bytes", len(line)))
			return false, d.remove(f.name)
		}
		r, err := record.Parse(line)
		if whole && err == nil && idOf(r.Log) == l.id && r.Seq == f.first {
			l.describe(r)
			return true, nil
		}
	}
	return false, nil
}

// isTornStart reports whether text, which has no line feed, can be what is left
// of a log's first record.
func isTornStart(text []byte) bool {
	const start = `{"log":"`
	n := min(len(start), len(text))
	return len(text) <= record.MaxLine && string(text[:n]) == start[:n]
}

// describe takes over what the first record that is left says.
func (l *files) describe(r *record.Record) {
	l.origin, l.start = r.Log, r.Time
	for _, f := range l.all {
		f.log = r.Log
	}
	if r.Seq != 0 || r.Pruned() || !r.Intact() {
		return
	}
	if e, err := record.ParseEvent(r.Event); err == nil && e.Kind == record.Start {
		l.before = e.Log
		if key, err := record.NewVerifier(e.Key); err == nil {
			l.key = key
		}
	}
}

// inOrder returns logs with the oldest first: by the time of their first
// records, then by name. But one that names another as the one before comes
// after that, also when the clock was set back between them.
func inOrder(logs []*files) []*files {
	slices.SortFunc(logs, func(a, b *files) int { return cmp.Or(a.start.Compare(b.start), strings.Compare(a.id, b.id)) })
	byOrigin := make(map[string]*files, len(logs))
	for _, l := range logs {
		byOrigin[l.origin] = l
	}
	sorted := make([]*files, 0, len(logs))
	placed := make(map[*files]bool, len(logs))
	for _, l := range logs {
		from := len(sorted)
		for ; l != nil && !placed[l]; l = byOrigin[l.before] {
			placed[l] = true
			sorted = append(sorted, l)
		}
		slices.Reverse(sorted[from:])
	}
	return sorted
}

// head returns the first line of a file without its line feed. If it is not
// whole, it returns the first MaxLine+1 bytes, at most.
func (d *Dir) head(name string) (line []byte, whole bool, err error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, false, fmt.Errorf("reading audit log: %w", err)
	}
	defer f.Close()
	line = make([]byte, record.MaxLine+1)
	n, err := io.ReadFull(f, line)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, false, fmt.Errorf("reading audit log: %w", err)
	}
	line, _, whole = bytes.Cut(line[:n], []byte{'\n'})
	return line, whole, nil
}

// tail returns the last n bytes of a file, or all of a shorter one.
func (d *Dir) tail(f *file, n int64) ([]byte, error) {
	in, err := d.root.Open(f.name)
	if err != nil {
		return nil, fmt.Errorf("reading audit log: %w", err)
	}
	defer in.Close()
	tail := make([]byte, min(f.size, n))
	if _, err := in.ReadAt(tail, f.size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading audit log: %w", err)
	}
	return tail, nil
}

// remove removes a file so that it stays removed.
func (d *Dir) remove(name string) error {
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing audit log file: %w", err)
	}
	return d.syncDir()
}
