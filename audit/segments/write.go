package segments

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"
)

// fileAge is how old a file becomes before it is full. It always has a record.
const fileAge = time.Hour

// pen writes the newest file.
type pen struct {
	mu    sync.Mutex  // held throughout Write
	file  *os.File    // nil: there is none yet
	info  fs.FileInfo // which file that is
	name  string
	size  int64     // in bytes, of what was written
	next  int64     // number of the next record
	begun time.Time // when the file was begun
	// looked is when checkRoom last looked which files were removed.
	looked time.Time

	unsynced bool // WriteSoon has written to file, and nothing has synced it since

	// What a Write that failed has left, until it is removed.
	torn  bool   // file may have more than size bytes
	stray string // the name of a file that was begun; empty: none
}

// Write appends whole lines, each with its line feed, the first of which is
// record seq of the log; with begin, to a new file. They are synced when it
// returns. After an error the files are as they were; where even that cannot be
// brought about, further Writes are errors until it can.
func (d *Dir) Write(seq int64, lines []byte, begin bool) error {
	return d.write(seq, lines, begin, false)
}

// WriteSoon is Write, but does not sync: what it has written survives the end of
// the process at once, and a crash of the machine when Sync, or a later Write, has
// returned. That the directory is still where it was Sync checks too.
func (d *Dir) WriteSoon(seq int64, lines []byte) error { return d.write(seq, lines, false, true) }

// Sync syncs what WriteSoon has written. After an error it is still there.
func (d *Dir) Sync() error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	d.pen.mu.Lock()
	defer d.pen.mu.Unlock()
	if d.pen.file == nil || !d.pen.unsynced {
		return nil
	}
	if err := d.mend(); err != nil {
		return err
	}
	if err := d.checkPlace(); err != nil {
		return err
	}
	return d.syncSoon()
}

// syncSoon syncs what is written and not synced.
func (d *Dir) syncSoon() error {
	if !d.pen.unsynced {
		return nil
	}
	if err := d.sync(d.pen.file); err != nil {
		return fmt.Errorf("syncing %s: %w", d.path(d.pen.name), err)
	}
	d.pen.unsynced = false
	return nil
}

func (d *Dir) write(seq int64, lines []byte, begin, soon bool) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	d.pen.mu.Lock()
	defer d.pen.mu.Unlock()
	switch {
	case len(lines) == 0 || lines[len(lines)-1] != '\n':
		return errors.New("writing audit log: the last line is not whole")
	case seq != d.pen.next || !begin && d.pen.file == nil:
		return fmt.Errorf("writing audit log: record %d cannot follow %d records", seq, d.pen.next)
	}
	if err := d.mend(); err != nil {
		return err
	}
	if !soon {
		if err := d.checkPlace(); err != nil {
			return err
		}
	}
	if err := d.checkRoom(int64(len(lines))); err != nil {
		return err
	}
	if !begin {
		return d.append(lines, soon)
	}
	if err := d.syncSoon(); err != nil {
		return err
	}
	return d.startFile(seq, lines)
}

// Full reports whether the next record should begin a new file: this one has
// SegmentBytes bytes, or is an hour old. Before the first Write it is false.
func (d *Dir) Full() bool {
	d.pen.mu.Lock()
	defer d.pen.mu.Unlock()
	return d.pen.file != nil && (d.pen.size >= d.cfg.SegmentBytes || time.Since(d.pen.begun) >= fileAge)
}

func (d *Dir) append(lines []byte, soon bool) error {
	d.pen.torn = true
	_, err := d.pen.file.WriteAt(lines, d.pen.size)
	if err == nil && !soon {
		err = d.sync(d.pen.file)
	}
	if err != nil {
		return d.undo(d.pen.name, err)
	}
	d.pen.torn, d.pen.unsynced = false, soon
	d.written(nil, lines)
	return nil
}

// startFile writes lines to a new file.
func (d *Dir) startFile(seq int64, lines []byte) error {
	name := fileName(idOf(d.cfg.Log), seq)
	out, err := d.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("beginning audit log file: %w", err)
	}
	d.pen.stray = name
	if _, err = out.Write(lines); err == nil {
		err = d.sync(out)
	}
	if err == nil {
		err = d.syncDir()
	}
	var info fs.FileInfo
	if err == nil {
		info, err = out.Stat()
	}
	if err != nil {
		_ = out.Close() // the file is removed
		return d.undo(name, err)
	}
	d.pen.stray = ""
	if d.pen.file != nil {
		_ = d.pen.file.Close() // it is synced
	}
	d.pen.file, d.pen.info, d.pen.name, d.pen.size, d.pen.begun = out, info, name, 0, time.Now()
	d.written(&file{name: name, log: d.cfg.Log, first: seq}, lines)
	return nil
}

// written counts what was written, to file f if it is new.
func (d *Dir) written(f *file, lines []byte) {
	n := int64(len(lines))
	d.pen.size += n
	d.pen.next += int64(bytes.Count(lines, []byte{'\n'}))
	d.mu.Lock()
	defer d.mu.Unlock()
	own := d.logs[len(d.logs)-1]
	if f != nil {
		own.all = append(own.all, f)
	}
	own.all[len(own.all)-1].size += n
	d.total += n
}

// undo takes back what of a failed Write there may be.
func (d *Dir) undo(name string, cause error) error {
	if err := d.mend(); err != nil {
		return fmt.Errorf("writing %s: %w; taking that back: %w", d.path(name), cause, err)
	}
	return fmt.Errorf("writing %s: %w", d.path(name), cause)
}

// mend removes what a failed Write has left. It opens the file again: the
// failure may be of the one that is open.
func (d *Dir) mend() error {
	if d.pen.stray != "" {
		if err := d.remove(d.pen.stray); err != nil {
			return err
		}
		d.pen.stray = ""
	}
	if !d.pen.torn {
		return nil
	}
	out, err := d.cutBack()
	if err != nil {
		return fmt.Errorf("cutting %s back to %d bytes: %w", d.path(d.pen.name), d.pen.size, err)
	}
	_ = d.pen.file.Close() // what it wrote is cut off
	d.pen.file, d.pen.torn = out, false
	return nil
}

// cutBack opens the file, and cuts off what was not written.
func (d *Dir) cutBack() (*os.File, error) {
	size, err := d.checkSame(d.pen.info, d.pen.name)
	if err != nil {
		return nil, err
	}
	if size < d.pen.size {
		return nil, fmt.Errorf("it has %d bytes only: put back what was written, or restart the sidecar", size)
	}
	out, err := d.root.OpenFile(d.pen.name, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	if err = out.Truncate(d.pen.size); err == nil {
		err = d.sync(out)
	}
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return out, nil
}

// checkPlace sees to it that what is written now can be found, and that nobody
// else writes: that the path leads to the directory that was opened, the lock's
// name to the file that is locked, and the newest file's to the one that is
// open, as long as it was left.
func (d *Dir) checkPlace() error {
	opened, err := d.root.Stat(".")
	if err != nil {
		return fmt.Errorf("checking audit directory: %w", err)
	}
	named, err := os.Lstat(d.cfg.Path)
	if err != nil {
		return fmt.Errorf("checking audit directory: %w", err)
	}
	if !os.SameFile(opened, named) {
		return fmt.Errorf("audit directory %s was replaced by another: put the old one back, or restart the sidecar", d.cfg.Path)
	}
	if _, err := d.checkSame(d.locked, lockFile); err != nil {
		return fmt.Errorf("%w, so that another sidecar may use the directory: stop that, and restart this one", err)
	}
	if d.pen.file == nil {
		return nil
	}
	size, err := d.checkSame(d.pen.info, d.pen.name)
	if err == nil && size != d.pen.size {
		err = fmt.Errorf("%s has %d bytes, but %d were written", d.path(d.pen.name), size, d.pen.size)
	}
	if err != nil {
		return fmt.Errorf("%w: put back what was written, or restart the sidecar", err)
	}
	return nil
}

// checkSame checks that a name still leads to that file, and returns its size.
func (d *Dir) checkSame(file fs.FileInfo, name string) (int64, error) {
	named, err := d.root.Lstat(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("checking %s: %w", d.path(name), err)
	}
	if err != nil || !os.SameFile(file, named) {
		return 0, fmt.Errorf("%s was removed or replaced", d.path(name))
	}
	return named.Size(), nil
}

// lookEvery is how often a Write that finds no room looks which files an operator
// has removed: a directory may have very many.
const lookEvery = time.Second

// checkRoom checks that more bytes keep within MaxBytes. Files that an operator
// has removed do not count, after a second at most.
func (d *Dir) checkRoom(more int64) error {
	if d.Bytes()+more <= d.cfg.MaxBytes {
		return nil
	}
	if d.pen.looked.IsZero() || time.Since(d.pen.looked) >= lookEvery {
		if err := d.forgetRemoved(); err != nil {
			return err
		}
		d.pen.looked = time.Now()
	}
	total := d.Bytes()
	if total+more <= d.cfg.MaxBytes {
		return nil
	}
	move := ""
	if all := d.finished(); len(all) > 0 {
		move = fmt.Sprintf("move the oldest files away, %s first, which needs no restart; or ", d.path(all[0].name))
	}
	return fmt.Errorf("audit directory %s has %d bytes, with %d more over max_bytes %d: %sraise audit.max_bytes, or shorten "+
		"audit.retention, and restart the sidecar", d.cfg.Path, total, more, d.cfg.MaxBytes, move)
}
