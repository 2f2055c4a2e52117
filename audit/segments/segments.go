// Package segments keeps an audit log in the files of a directory.
//
// A log is in files named <id>.<number of its first record, 12 digits>.jsonl,
// where <id> is the last element of the log's origin. A file is full, and the
// next record begins another, when it has SegmentBytes bytes or is an hour old.
// Earlier logs stay in the directory until their retention is over.
package segments

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/keysidecar/keysidecar/audit/record"
)

// The names in a directory that are no log's. Others are left alone.
const (
	lockFile   = "audit.lock"
	tempPrefix = "audit-pruned-"
	tempSuffix = ".tmp"
)

// ErrInUse is returned by Open when another process has the directory open.
var ErrInUse = errors.New("another sidecar uses the directory: give each its own")

// Config configures a Dir.
type Config struct {
	// Path is the directory. It is absolute and no symbolic link, exists, belongs
	// to this user or root, and nobody else can write to it. Required.
	Path string
	// Log is the origin of the log that is to be written. Its last element is
	// in the names of its files. Required.
	Log string
	// SegmentBytes is how many bytes make a file full. Zero means 64 MiB.
	SegmentBytes int64
	// MaxBytes is how many bytes all files may have. What would exceed it is not
	// written. Zero means 4 GiB.
	MaxBytes int64
	// Retention is for how long events are kept. Zero means for ever.
	Retention Retention
	// Logger gets what an operator should know. Required.
	Logger *slog.Logger
}

// Retention is for how long the events of each class are kept. Zero is for ever.
type Retention struct{ Keys, Denials, Data time.Duration }

func classes() [3]record.Class { return [...]record.Class{record.Keys, record.Denials, record.Data} }

// of returns the retention of a class.
func (r Retention) of(c record.Class) time.Duration {
	switch c {
	case record.Keys:
		return r.Keys
	case record.Denials:
		return r.Denials
	case record.Data:
		return r.Data
	}
	return 0
}

// shortest returns the shortest retention that ends; zero if none does.
func (r Retention) shortest() time.Duration {
	var least time.Duration
	for _, c := range classes() {
		if keep := r.of(c); keep > 0 && (least == 0 || keep < least) {
			least = keep
		}
	}
	return least
}

func (cfg *Config) check() error {
	if cfg.Logger == nil || !filepath.IsAbs(cfg.Path) {
		return errors.New("audit directory config: Logger and an absolute Path are required")
	}
	if err := record.CheckOrigin(cfg.Log); err != nil {
		return fmt.Errorf("audit directory config: %w", err)
	}
	if idOf(cfg.Log) == "" {
		return fmt.Errorf("audit directory config: the log origin %s ends with a slash", cfg.Log)
	}
	if r := cfg.Retention; min(cfg.SegmentBytes, cfg.MaxBytes) < 0 || min(r.Keys, r.Denials, r.Data) < 0 {
		return errors.New("audit directory config: a size or a retention is negative")
	}
	return nil
}

// Dir is a directory of audit logs that is nobody else's while it is open. It
// stays the directory that was checked, whatever happens to its path. It is safe
// for concurrent use.
type Dir struct {
	cfg      Config
	root     *os.Root
	lock     *os.File             // locked where there is flock
	locked   fs.FileInfo          // which file that is
	sync     func(*os.File) error // (*os.File).Sync, but for tests
	opened   time.Time            // with its monotonic reading
	wall     time.Time            // the same without it
	previous *Previous

	pen     pen
	pruning sync.Mutex // held throughout Prune

	mu     sync.Mutex // held for moments only
	logs   []*files   // the oldest first; the last is the one that is written
	total  int64      // bytes of all files
	users  int        // calls of Write and Prune that go on
	closed bool
}

// Open locks the directory, so that no other process can open it, removes what
// a process that was killed left unfinished, and finds out how far the log
// before went: see Previous. Of that log it cuts a torn last line off.
//
// Only a directory or file that cannot be used as it is makes an error. What is
// damaged in a log is not: Previous has it.
func Open(cfg Config) (*Dir, error) { return open(cfg, (*os.File).Sync) }

func open(cfg Config, sync func(*os.File) error) (*Dir, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.Path = filepath.Clean(cfg.Path)
	cfg.SegmentBytes = cmp.Or(cfg.SegmentBytes, 64<<20)
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 4<<30)
	root, err := os.OpenRoot(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("opening audit directory, which has to exist: %w", err)
	}
	now := time.Now()
	d := &Dir{cfg: cfg, root: root, sync: sync, opened: now, wall: now.Round(0)}
	if err := d.prepare(); err != nil {
		_ = d.release() // it has nothing that could be lost
		return nil, fmt.Errorf("opening audit directory %s: %w", cfg.Path, err)
	}
	return d, nil
}

// prepare checks, locks and repairs the directory.
func (d *Dir) prepare() error {
	if err := d.checkDir(); err != nil {
		return err
	}
	if _, err := d.regular(lockFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var err error
	if d.lock, err = d.root.OpenFile(lockFile, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return fmt.Errorf("opening lock: %w", err)
	}
	if d.locked, err = d.lock.Stat(); err != nil {
		return fmt.Errorf("opening lock: %w", err)
	}
	if err := lock(d.lock); err != nil {
		return fmt.Errorf("locking %s: %w", lockFile, err)
	}
	if err := d.scan(); err != nil {
		return err
	}
	if err := d.recover(); err != nil {
		return err
	}
	d.logs = append(d.logs, &files{id: idOf(d.cfg.Log), origin: d.cfg.Log})
	for _, l := range d.logs {
		for _, f := range l.all {
			d.total += f.size
		}
	}
	return nil
}

// checkDir sees to it that the path itself is the directory that was opened,
// and that nobody else writes to it.
func (d *Dir) checkDir() error {
	info, err := os.Lstat(d.cfg.Path)
	if err != nil {
		return fmt.Errorf("checking audit directory: %w", err)
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return errors.New("it is a symbolic link, which others may change: name the directory that it leads to")
	}
	opened, err := d.root.Stat(".")
	if err != nil {
		return fmt.Errorf("checking audit directory: %w", err)
	}
	if !os.SameFile(opened, info) {
		return errors.New("it was replaced while it was opened: try again")
	}
	return checkOwner(info, os.Geteuid())
}

// regular returns the size of a file that only this user and root can have
// written. The directory is theirs alone, so that it stays such a file.
func (d *Dir) regular(name string) (int64, error) {
	info, err := d.root.Lstat(name)
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file: remove it", d.path(name))
	}
	if err := checkOwner(info, os.Geteuid()); err != nil {
		return 0, fmt.Errorf("%s %w", d.path(name), err)
	}
	return info.Size(), nil
}

func (d *Dir) path(name string) string { return filepath.Join(d.cfg.Path, name) }

// isTemp reports whether a file is one that rewrite did not finish.
func isTemp(name string) bool {
	return strings.HasPrefix(name, tempPrefix) && strings.HasSuffix(name, tempSuffix)
}

// Previous returns how far the log before went. It is false if there is none.
func (d *Dir) Previous() (Previous, bool) {
	if d.previous == nil {
		return Previous{}, false
	}
	return *d.previous, true
}

// Bytes returns the size of all files of all logs in bytes.
func (d *Dir) Bytes() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.total
}

// Room returns how many bytes all files of all logs have, and how many they may
// have, at most: beyond that, Write is an error. It only takes a lock.
func (d *Dir) Room() (used, most int64) { return d.Bytes(), d.cfg.MaxBytes }

// Close lets others open the directory. It does not wait for a Write or Prune
// that goes on, which may hang with its disk: then the directory stays locked
// until that has ended. Further ones are errors. A second Close does nothing.
func (d *Dir) Close() error {
	d.mu.Lock()
	last := !d.closed && d.users == 0
	d.closed = true
	d.mu.Unlock()
	if last {
		return d.release()
	}
	return nil
}

// enter begins a use of the directory, which leave ends.
func (d *Dir) enter() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("audit directory %s is closed", d.cfg.Path)
	}
	d.users++
	return nil
}

func (d *Dir) leave() {
	d.mu.Lock()
	d.users--
	last := d.closed && d.users == 0
	d.mu.Unlock()
	if last {
		_ = d.release() // all that was written is synced
	}
}

// release closes all files. Nobody uses them any more.
func (d *Dir) release() error {
	var err error
	if d.pen.file != nil {
		err = d.pen.file.Close()
	}
	err = errors.Join(err, d.root.Close())
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}
