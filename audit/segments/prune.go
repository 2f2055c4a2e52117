package segments

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/keysidecar/keysidecar/audit/record"
)

// Pruned is what Prune has done.
type Pruned struct {
	// Events is how many events were removed from files that stay.
	Events int64
	// Files is how many files were removed.
	Files int
	// Bytes is how much less all files have.
	Bytes int64
}

// plan is when there is something to do for a file. It spares reading it.
type plan struct {
	// read is whether the file was read. look is when it is to be read next; zero:
	// if it was read, never.
	read bool
	look time.Time
	// gone is from when on the file is not needed; zero: never, or it was not read.
	gone time.Time
}

// clockSlack is how far the clock may be set while a Dir is open.
const clockSlack = time.Hour

// Prune removes what is over at time now from all files but the one that is
// written. When the newest record of a class in a file is older than the
// retention of the class, the events of that class are removed from the file;
// their records stay. Events of kind start, stop, segment, checkpoint, certified
// and unaccounted stay as long as their file. A file of which all classes are
// over is removed, if there is no older one, so that what is left is in one
// piece.
//
// A file is read only when its last record is older than the shortest retention.
// It was written for an hour: so much later, at most, are its events removed.
//
// A damaged file stays as it is, and with it those after it; it is in the error.
// So is what cannot be written; what was done until then is done. When the clock
// was set by more than an hour since Open, nothing is removed.
func (d *Dir) Prune(now time.Time) (Pruned, error) {
	var done Pruned
	if err := d.enter(); err != nil {
		return done, err
	}
	defer d.leave()
	d.pruning.Lock()
	defer d.pruning.Unlock()
	if d.cfg.Retention.shortest() == 0 {
		return done, nil
	}
	if err := d.checkClock(); err != nil {
		return done, err
	}
	if err := d.forgetRemoved(); err != nil {
		return done, err
	}
	return done, d.pruneAll(now, &done)
}

func (d *Dir) pruneAll(now time.Time, done *Pruned) error {
	var first error
	damaged, oldest := 0, true
	for _, f := range d.finished() {
		if d.isClosed() {
			break
		}
		gone, err := d.pruneFile(f, now, oldest, done)
		if _, ok := errors.AsType[*damage](err); ok {
			if damaged++; first == nil {
				first = err
			}
		} else if err != nil {
			return fmt.Errorf("pruning audit log: %w", err)
		}
		oldest = oldest && gone
	}
	if first != nil {
		return fmt.Errorf("pruning audit log: %d files are damaged and stay as they are; look at them with keysidecar audit verify, "+
			"then move them away: %w", damaged, first)
	}
	return nil
}

// checkClock returns why nothing is known to be over.
func (d *Dir) checkClock() error {
	now := time.Now()
	set := now.Round(0).Sub(d.wall) - now.Sub(d.opened)
	if set.Abs() <= clockSlack {
		return nil
	}
	return fmt.Errorf("pruning audit log: nothing is removed, because the clock was set by %v since the sidecar started "+
		"(or the machine slept): see that it is right, then restart the sidecar", set.Round(time.Second))
}

func (d *Dir) isClosed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed
}

// finished returns all files but the one that is written, the oldest first.
func (d *Dir) finished() []*file {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []*file
	for _, l := range d.logs {
		all = append(all, l.all...)
	}
	if len(d.logs[len(d.logs)-1].all) > 0 {
		all = all[:len(all)-1]
	}
	return all
}

// forgetRemoved forgets the files that somebody else has removed.
func (d *Dir) forgetRemoved() error {
	for _, f := range d.finished() {
		if _, err := d.root.Lstat(f.name); errors.Is(err, fs.ErrNotExist) {
			d.forget(f)
		} else if err != nil {
			return fmt.Errorf("checking audit directory: %w", err)
		}
	}
	return nil
}

// forget forgets a file, if it is still known.
func (d *Dir) forget(f *file) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.logs {
		if i := slices.Index(l.all, f); i >= 0 {
			l.all = slices.Delete(l.all, i, i+1)
			d.total -= f.size
		}
	}
}

// pruneFile removes what is over from a file, and the file if nothing of it is
// left and it is the oldest: then it reports that it is gone.
func (d *Dir) pruneFile(f *file, now time.Time, oldest bool, done *Pruned) (gone bool, err error) {
	if !f.plan.read && f.plan.look.IsZero() {
		last, err := d.lastTime(f)
		if err != nil {
			return false, err
		}
		f.plan.look = last.Add(d.cfg.Retention.shortest())
	}
	if !f.plan.look.IsZero() && now.After(f.plan.look) {
		s, err := d.survey(f)
		if err != nil {
			return false, err
		}
		if err := d.pruneEvents(f, s, now, done); err != nil {
			return false, err
		}
	}
	if !oldest || f.plan.gone.IsZero() || !now.After(f.plan.gone) {
		return false, nil
	}
	return true, d.pruneWhole(f, done)
}

// pruneWhole removes a file.
func (d *Dir) pruneWhole(f *file, done *Pruned) error {
	if err := d.remove(f.name); err != nil {
		return err
	}
	done.Files++
	done.Bytes += f.size
	d.forget(f)
	return nil
}

// lastTime returns the time of a file's last record; zero if that is none.
func (d *Dir) lastTime(f *file) (time.Time, error) {
	in, err := d.root.Open(f.name)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading audit log: %w", err)
	}
	defer in.Close()
	tail := make([]byte, min(f.size, record.MaxLine+2)) // with the line feeds before and after
	if _, err := in.ReadAt(tail, f.size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return time.Time{}, fmt.Errorf("reading audit log: %w", err)
	}
	line := bytes.TrimSuffix(tail, []byte{'\n'})
	r, err := record.Parse(line[bytes.LastIndexByte(line, '\n')+1:])
	if err != nil {
		return time.Time{}, nil // survey says where and why
	}
	return r.Time, nil
}

// span is what a file has of a class.
type span struct {
	records   bool
	newest    time.Time
	removable bool // it has events that may be removed
}

// survey reads a file. What it has of class c is in element c.
func (d *Dir) survey(f *file) ([record.Data + 1]span, error) {
	var all [record.Data + 1]span
	c := chainFrom(f.log, f.first)
	_, err := d.walk(f.name, func(line []byte) error {
		r, err := c.add(line)
		if err != nil {
			return err
		}
		s := &all[r.Class]
		if s.records = true; r.Time.After(s.newest) {
			s.newest = r.Time
		}
		if !s.removable {
			s.removable, err = removable(r)
		}
		return err
	})
	if err == nil && c.next == f.first {
		err = &damage{d.path(f.name), 1, errors.New("it has no record")}
	}
	return all, err
}

// removable reports whether a record has an event that may be removed before
// its file: it is not needed to verify the log.
func removable(r *record.Record) (bool, error) {
	if r.Pruned() || r.Class != record.Keys {
		return !r.Pruned(), nil
	}
	e, err := record.ParseEvent(r.Event)
	if err != nil {
		return false, err
	}
	switch e.Kind {
	case record.Start, record.Stop, record.Segment, record.CheckpointMade, record.Certified, record.Unaccounted:
		return false, nil
	default:
		return true, nil
	}
}

// pruneEvents removes the events of the classes that are over, and plans when
// to look at the file again.
func (d *Dir) pruneEvents(f *file, all [record.Data + 1]span, now time.Time, done *Pruned) error {
	over := make(map[record.Class]bool)
	next, ever := plan{read: true}, false
	for _, class := range classes() {
		s := all[class]
		if !s.records {
			continue
		}
		keep := d.cfg.Retention.of(class)
		end := s.newest.Add(keep)
		switch {
		case keep == 0:
			ever = true
		case s.removable && now.After(end):
			over[class] = true
		case s.removable && (next.look.IsZero() || end.Before(next.look)):
			next.look = end
		}
		if end.After(next.gone) {
			next.gone = end
		}
	}
	if ever {
		next.gone = time.Time{}
	}
	if len(over) > 0 {
		if err := d.rewrite(f, over, done); err != nil {
			return err
		}
	}
	f.plan = next
	return nil
}

// rewrite replaces a file by one without the events of some classes. After a
// crash at any point it is the old one or the new one.
func (d *Dir) rewrite(f *file, over map[record.Class]bool, done *Pruned) error {
	info, err := d.root.Lstat(f.name)
	if err != nil {
		return err
	}
	temp := tempPrefix + rand.Text() + tempSuffix
	events, size, err := d.writePruned(temp, f, over, info.ModTime())
	if err == nil {
		err = d.root.Rename(temp, f.name)
	}
	if err != nil {
		_ = d.root.Remove(temp) // or the next Open does it
		return fmt.Errorf("rewriting %s: %w", d.path(f.name), err)
	}
	done.Events += events
	done.Bytes += f.size - size
	d.mu.Lock()
	d.total += size - f.size
	f.size = size
	d.mu.Unlock()
	return d.syncDir()
}

// writePruned writes what of a file is not over to another, and returns how many
// events that leaves out, and the other's size.
func (d *Dir) writePruned(
	temp string, f *file, over map[record.Class]bool, changed time.Time,
) (events, size int64, err error) {
	out, err := d.root.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, 0, err
	}
	to, c := bufio.NewWriterSize(out, 64<<10), chainFrom(f.log, f.first)
	var buf []byte
	_, err = d.walk(f.name, func(line []byte) error {
		r, err := c.add(line)
		if err != nil {
			return err
		}
		buf = append(append(buf[:0], line...), '\n')
		if over[r.Class] {
			if remove, err := removable(r); err != nil {
				return err
			} else if remove {
				buf = r.AppendPruned(buf[:0])
				events++
			}
		}
		size += int64(len(buf))
		_, _ = to.Write(buf) // Flush returns the error, which is no damage
		return nil
	})
	if err == nil {
		err = to.Flush()
	}
	if err == nil {
		err = d.root.Chtimes(temp, time.Time{}, changed)
	}
	if err == nil {
		err = d.sync(out)
	}
	return events, size, errors.Join(err, out.Close())
}
