package segments

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
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
	// Oldest and Newest are the times of the oldest and the newest record that
	// was removed, or lost its event. They are zero if there is none.
	Oldest, Newest time.Time
}

// cover extends Oldest and Newest to a time.
func (p *Pruned) cover(at time.Time) {
	if p.Oldest.IsZero() || at.Before(p.Oldest) {
		p.Oldest = at
	}
	if at.After(p.Newest) {
		p.Newest = at
	}
}

// plan is when there is something to do for a file. It spares reading it.
type plan struct {
	// read is whether the file was read. look is when it is to be read next; zero:
	// if it was read, never.
	read bool
	look time.Time
	// gone is from when on the file is not needed; zero: never, or it was not read.
	gone time.Time
	// oldest and newest are the times of its records, if it was read.
	oldest, newest time.Time
}

// maxErrors is how many errors Prune returns, at most.
const maxErrors = 10

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
// So is what cannot be written, which is tried again next time: the other files
// are pruned all the same. A file that goes as a whole needs no room on the disk.
// When ctx ends, Prune ends within about a MiB of reading, with ctx's error. What
// was done until then is done, and in Pruned, whatever the error.
//
// When the clock may be wrong, nothing is removed: see checkClock and checkAway.
func (d *Dir) Prune(ctx context.Context, now time.Time) (Pruned, error) {
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
	err := d.checkClock()
	if err == nil {
		err = d.forgetRemoved()
	}
	if err == nil {
		err = d.checkAway(ctx, now)
	}
	if err == nil {
		err = d.pruneAll(ctx, now, &done)
	}
	if err != nil {
		return done, fmt.Errorf("pruning audit log: %w", err)
	}
	return done, nil
}

func (d *Dir) pruneAll(ctx context.Context, now time.Time, done *Pruned) error {
	var errs []error
	var bad *damage // the first
	damaged, failed, oldest := 0, 0, true
	for _, f := range d.finished() {
		if d.isClosed() {
			break
		}
		gone, err := d.pruneFile(ctx, f, now, oldest, done)
		if b, ok := errors.AsType[*damage](err); ok {
			damaged, bad = damaged+1, cmp.Or(bad, b)
		} else if err != nil {
			if failed++; failed <= maxErrors {
				errs = append(errs, err)
			}
		}
		if err != nil && ctx.Err() != nil {
			break
		}
		oldest = oldest && gone && err == nil
	}
	if failed > maxErrors {
		errs = append(errs, fmt.Errorf("and %d other files", failed-maxErrors))
	}
	if damaged > 0 {
		errs = append(errs, fmt.Errorf("%d files are damaged and stay as they are; look at them with keysidecar audit verify, "+
			"then move them away: %w", damaged, bad))
	}
	return errors.Join(errs...)
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

// pruneFile removes what is over from a file; or all of the file, if nothing of
// it is left and it is the oldest: then it reports that it is gone.
func (d *Dir) pruneFile(ctx context.Context, f *file, now time.Time, oldest bool, done *Pruned) (gone bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if !f.plan.read && f.plan.look.IsZero() {
		last, err := d.lastTime(f)
		if err != nil {
			return false, err
		}
		f.plan.look = last.Add(d.cfg.Retention.shortest())
	}
	next, over := f.plan, classSet{}
	if !f.plan.look.IsZero() && now.After(f.plan.look) {
		s, err := d.survey(ctx, f)
		if err != nil {
			return false, err
		}
		next, over = d.planOf(s, now)
	}
	if oldest && !next.gone.IsZero() && now.After(next.gone) {
		return true, d.pruneWhole(f, next, done)
	}
	if over != (classSet{}) {
		if err := d.rewrite(ctx, f, over, done); err != nil {
			return false, err
		}
	}
	f.plan = next
	return false, nil
}

// pruneWhole removes a file.
func (d *Dir) pruneWhole(f *file, p plan, done *Pruned) error {
	if err := d.root.Remove(f.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing audit log file: %w", err)
	}
	done.Files++
	done.Bytes += f.size
	done.cover(p.oldest)
	done.cover(p.newest)
	d.forget(f)
	return d.syncDir()
}

// lastTime returns the time of a file's last record; zero if that is none.
func (d *Dir) lastTime(f *file) (time.Time, error) {
	tail, err := d.tail(f, record.MaxLine+2) // with the line feeds before and after
	if err != nil {
		return time.Time{}, err
	}
	line := bytes.TrimSuffix(tail, []byte{'\n'})
	r, err := record.Parse(line[bytes.LastIndexByte(line, '\n')+1:])
	if err != nil {
		return time.Time{}, nil //nolint:nilerr // survey says where and why
	}
	return r.Time, nil
}

// classSet has true at the classes that are in it.
type classSet [record.Data + 1]bool

// span is what a file has of a class.
type span struct {
	records        bool
	oldest, newest time.Time
	removable      bool // it has events that may be removed
}

// survey reads a file. What it has of class c is in element c.
func (d *Dir) survey(ctx context.Context, f *file) ([record.Data + 1]span, error) {
	var all [record.Data + 1]span
	c := chainFrom(f.log, f.first)
	_, err := d.walk(ctx, f.name, func(line []byte) error {
		r, err := c.add(line)
		if err != nil {
			return err
		}
		s := &all[r.Class]
		if !s.records || r.Time.Before(s.oldest) {
			s.oldest = r.Time
		}
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

// planOf returns which classes have events that are over, and when to look at
// the file again once they are removed.
func (d *Dir) planOf(all [record.Data + 1]span, now time.Time) (next plan, over classSet) {
	next.read = true
	ever := false
	for _, class := range classes() {
		s := all[class]
		if !s.records {
			continue
		}
		if next.oldest.IsZero() || s.oldest.Before(next.oldest) {
			next.oldest = s.oldest
		}
		if s.newest.After(next.newest) {
			next.newest = s.newest
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
	return next, over
}

// rewrite replaces a file by one without the events of some classes. After a
// crash at any point it is the old one or the new one.
func (d *Dir) rewrite(ctx context.Context, f *file, over classSet, done *Pruned) error {
	info, err := d.root.Lstat(f.name)
	if err != nil {
		return err
	}
	temp := tempPrefix + rand.Text() + tempSuffix
	var removed Pruned
	err = d.writePruned(ctx, temp, f, over, info.ModTime(), &removed)
	if err == nil {
		err = d.root.Rename(temp, f.name)
	}
	if err != nil {
		_ = d.root.Remove(temp) // or the next Open does it
		return fmt.Errorf("rewriting %s: %w", d.path(f.name), err)
	}
	done.Events += removed.Events
	done.Bytes += removed.Bytes
	done.cover(removed.Oldest)
	done.cover(removed.Newest)
	d.mu.Lock()
	d.total -= removed.Bytes
	f.size -= removed.Bytes
	d.mu.Unlock()
	return d.syncDir()
}

// writePruned writes what of a file is not over to another. It adds to done what
// that leaves out.
func (d *Dir) writePruned(
	ctx context.Context, temp string, f *file, over classSet, changed time.Time, done *Pruned,
) error {
	out, err := d.root.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	to, c := bufio.NewWriterSize(out, 64<<10), chainFrom(f.log, f.first)
	var buf []byte
	_, err = d.walk(ctx, f.name, func(line []byte) error {
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
				done.Events++
				done.Bytes += int64(len(line) + 1 - len(buf))
				done.cover(r.Time)
			}
		}
		_, err = to.Write(buf)
		return err
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
	return errors.Join(err, out.Close())
}
