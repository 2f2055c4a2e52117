package segments

import (
	"os"
	"time"
)

// OpenWith is Open with another fsync.
var OpenWith = open

// CheckOwner is checkOwner.
var CheckOwner = checkOwner

// SetSync replaces fsync.
func (d *Dir) SetSync(sync func(*os.File) error) { d.sync = sync }

// SetFile replaces the open file that is written, and returns the old one.
func (d *Dir) SetFile(f *os.File) *os.File {
	old := d.pen.file
	d.pen.file = f
	return old
}

// SetClock makes it as if the clock had been set by that since Open.
func (d *Dir) SetClock(by time.Duration) { d.wall = d.wall.Add(-by) }

// Age makes it as if Open was that much longer ago.
func (d *Dir) Age(by time.Duration) { d.opened, d.wall = d.opened.Add(-by), d.wall.Add(-by) }
