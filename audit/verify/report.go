package verify

import (
	"slices"
	"time"

	"github.com/keysidecar/keysidecar/audit/record"
)

// Kind says what a Finding is. Kinds do not change between releases.
type Kind string

// What can be wrong: the kinds of problems.
const (
	// Malformed: a line is not one that a sidecar writes.
	Malformed Kind = "malformed"
	// EventChanged: an event does not have the SHA-256 of its record.
	EventChanged Kind = "event-changed"
	// BrokenLink: a record does not link to the one before it. One of the two,
	// From or To, was changed.
	BrokenLink Kind = "broken-link"
	// Missing: the records From to To are not here.
	Missing Kind = "missing"
	// Repeated: a directory has a record's number twice. From to To is where the
	// second stands.
	Repeated Kind = "repeated"
	// Fork: there are two different records of one number.
	Fork Kind = "fork"
	// OutOfOrder: a record of a directory stands where another should.
	OutOfOrder Kind = "out-of-order"
	// RootDiffers: the records From to To are not those that a checkpoint of the
	// log has signed.
	RootDiffers Kind = "root-differs"
	// BadSignature: a checkpoint in the log is not signed by the log's key.
	BadSignature Kind = "bad-signature"
	// SizeDiffers: a checkpoint is not of the records before it: among From to To,
	// some were removed or added.
	SizeDiffers Kind = "size-differs"
	// BadFrontier: the frontier of a segment is not that of its checkpoint.
	BadFrontier Kind = "bad-frontier"
	// OutsideDiffers: the records From to To are not those of a checkpoint that
	// was kept elsewhere.
	OutsideDiffers Kind = "outside-differs"
	// OutsideForged: a checkpoint that was kept elsewhere is not signed by the
	// key of the log that is here: it is forged, or the log is.
	OutsideForged Kind = "outside-forged"
	// Cut: the records From to To were there, says a checkpoint kept elsewhere or
	// the log that came after, and are not here.
	Cut Kind = "cut"
	// TwoRoots: the log's key has signed two checkpoints of one size with
	// different roots.
	TwoRoots Kind = "two-roots"
	// MissingLog: a checkpoint kept elsewhere, or a later log, names a log of
	// which nothing is here.
	MissingLog Kind = "missing-log"
	// PreviousDiffers: the log is not what the one that came after it saw.
	PreviousDiffers Kind = "previous-differs"
	// ClockBack: the time goes back, and no record says that the clock was set.
	ClockBack Kind = "clock-back"
	// BadCertificate: a certificate is not by a known key, or for another log.
	BadCertificate Kind = "bad-certificate"
	// BadKey: the log's key is not one that is known for the log, or none at all.
	BadKey Kind = "bad-key"
	// Unvouched: keys are known, and none of them is or certifies the log's key.
	Unvouched Kind = "unvouched"
	// BadBegin: the first record is neither the start of a log nor of a segment.
	BadBegin Kind = "bad-begin"
	// AfterStop: there are records after the one that says that the log ends.
	AfterStop Kind = "after-stop"
	// PrunedEarly: records or events were removed before their time was over, or
	// nothing but records that no checkpoint covers says that it was.
	PrunedEarly Kind = "pruned-early"
	// NeverSigned: the log's key is known, and has signed nothing that is here.
	NeverSigned Kind = "never-signed"
	// UnsignedTail: no checkpoint covers the records From to To, which are of a
	// longer time than a sidecar lets pass without one.
	UnsignedTail Kind = "unsigned-tail"
	// OutsideUnchecked: checkpoints of the log were kept elsewhere, and none of
	// them, nor who signed them, could be compared.
	OutsideUnchecked Kind = "outside-unchecked"
	// Unproved: for longer than Config.MaxUnproved, no checkpoint that was kept
	// elsewhere proves the records From to To.
	Unproved Kind = "unproved"
)

// What cannot be known: the kinds of notes.
const (
	// Empty: there are no records at all.
	Empty Kind = "empty"
	// OwnWord: nothing but the log itself says whose key it has. Who can write
	// where it is kept may have made it up.
	OwnWord Kind = "own-word"
	// NoKey: the log's key is not here; its checkpoints are compared, but who
	// signed them is not known.
	NoKey Kind = "no-key"
	// NoOutside: no checkpoint kept elsewhere is of this log. That its end was cut
	// off, at any of its checkpoints, cannot be found.
	NoOutside Kind = "no-outside"
	// AfterOutside: the records From to To came after the newest checkpoint kept
	// elsewhere. That others after them were cut off cannot be found, and who has
	// the log's key can have changed these.
	AfterOutside Kind = "after-outside"
	// Unsigned: no checkpoint covers the records From to To. Anybody can have
	// changed them.
	Unsigned Kind = "unsigned"
	// Unchecked: no root of the records From to To could be compared, because
	// of the problem before.
	Unchecked Kind = "unchecked"
	// Removed: the records From to To were removed; a segment begins after them.
	Removed Kind = "removed"
	// Torn: the last line was not written whole.
	Torn Kind = "torn"
	// OpenEnd: the log has no last record: its sidecar runs, or was killed, or
	// the end was cut off.
	OpenEnd Kind = "open-end"
	// OutsideOld: checkpoints kept elsewhere are of records that were removed.
	OutsideOld Kind = "outside-old"
	// LogRemoved: the log before is not here; its time was over, if Config.Kept
	// says for how long it had to be kept.
	LogRemoved Kind = "log-removed"
	// KeptUnchecked: Config.Kept does not say for how long a class is kept.
	KeptUnchecked Kind = "kept-unchecked"
)

// Finding is something that is wrong, or that could not be checked.
type Finding struct {
	Kind Kind `json:"kind"`
	// Log is the origin of the log, if it is known.
	Log string `json:"log,omitempty"`
	// From and To are the numbers of the first and the last record that it is
	// about. Both are -1 if it is about no record.
	From int64 `json:"from"`
	To   int64 `json:"to"`
	// Source and Line are the file and its line, from 1, if it is one line.
	Source string `json:"source,omitempty"`
	Line   int    `json:"line,omitempty"`
	// Text says it to people.
	Text string `json:"text"`
}

// Interval is a time from when to when.
type Interval struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// Pruned says how many events of one class were removed.
type Pruned struct {
	Class string `json:"class"`
	Count int64  `json:"count"`
	// First and Last are the times of the oldest and of the newest.
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// LogReport is what was found out about one log.
type LogReport struct {
	// Log is the log's origin.
	Log string `json:"log"`
	// Directory is where it is; empty for a log of streams.
	Directory string `json:"directory,omitempty"`
	// Version is that of the program that wrote it.
	Version string `json:"version,omitempty"`
	// First and Last are the numbers of the first and the last record here.
	First int64 `json:"first"`
	Last  int64 `json:"last"`
	// Begin and End are their times.
	Begin time.Time `json:"begin"`
	End   time.Time `json:"end"`
	// Key is the log's verifier key; empty if it is not here.
	Key string `json:"key,omitempty"`
	// Trusted says that the key is among Trust.Keys.
	Trusted bool `json:"trusted"`
	// Certified is how the Key Vault key, one of Trust.Signers, calls itself that
	// certifies the log's key; else empty. That it is one of them is checked, the
	// name is not.
	Certified string `json:"certified,omitempty"`
	// Outside is up to which size checkpoints kept elsewhere prove the log.
	Outside int64 `json:"outside"`
	// Signed is the size of the newest checkpoint in the log that is right.
	Signed int64 `json:"signed"`
	// Stopped says that the log was closed, not broken off.
	Stopped bool `json:"stopped"`
	// Previous is the log before, as this one says. PreviousLinked says that it
	// is here, and as this one has seen it.
	Previous       string `json:"previous,omitempty"`
	PreviousLinked bool   `json:"previous_linked"`
	// Next is the log that has seen this one as it is here.
	Next string `json:"next,omitempty"`
	// Unaccounted are the times of which the log says that records may be missing.
	Unaccounted []Interval `json:"unaccounted,omitempty"`
	// Lost is how many records the log says that it has lost.
	Lost int64 `json:"lost,omitempty"`
	// Pruned are the events that were removed, by class.
	Pruned []Pruned `json:"pruned,omitempty"`
}

// Report is the result of a verification.
type Report struct {
	// Logs are all that there are, by origin.
	Logs []LogReport `json:"logs"`
	// Problems say that something is not as it was written, by log and place.
	Problems []Finding `json:"problems"`
	// MoreProblems is how many more there are: at most 1,000 of each log, and
	// 1,000 others, are listed.
	MoreProblems int64 `json:"more_problems,omitempty"`
	// Notes say what could not be checked. They are no problems, and no proof
	// that there are none.
	Notes []Finding `json:"notes"`
}

// Verified reports whether there is a log and no problem. It says nothing about
// what Notes say.
func (r *Report) Verified() bool {
	return len(r.Logs) > 0 && len(r.Problems) == 0 && r.MoreProblems == 0
}

// pruned counts a removed event.
func (r *LogReport) prune(class record.Class, at time.Time) {
	name := class.String()
	for i := range r.Pruned {
		if p := &r.Pruned[i]; p.Class == name {
			p.Count++
			p.First = slices.MinFunc([]time.Time{p.First, at}, time.Time.Compare)
			p.Last = slices.MaxFunc([]time.Time{p.Last, at}, time.Time.Compare)
			return
		}
	}
	r.Pruned = append(r.Pruned, Pruned{Class: name, Count: 1, First: at, Last: at})
}
