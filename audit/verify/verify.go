// Package verify is what an outsider runs: it finds what in an audit log is not
// as the sidecar wrote it, says what cannot be found, and proves single records.
package verify

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keysidecar/keysidecar/audit/reader"
	"github.com/keysidecar/keysidecar/audit/record"
)

// Trust is what is known from elsewhere than the log. The zero Trust knows
// nothing: then a log is compared with itself only.
type Trust struct {
	// Keys are verifier keys of logs.
	Keys []string
	// Signers are the Key Vault keys (P-256) that certify logs' keys.
	Signers []*ecdsa.PublicKey
	// Checkpoints are signed notes that were kept elsewhere.
	Checkpoints []string
}

// Kept is for how long records are kept at least. What is younger must not have
// been removed; zero means that it is not checked. A record's age is taken from
// its time only if a checkpoint covers it.
type Kept struct{ Keys, Denials, Data time.Duration }

// Forever says, in Kept, that nothing may be removed.
const Forever time.Duration = math.MaxInt64

// of returns the time of a class.
func (k Kept) of(class record.Class) time.Duration {
	return [...]time.Duration{record.Keys: k.Keys, record.Denials: k.Denials, record.Data: k.Data}[class]
}

// longest is the time of whole files: they have records of all classes.
func (k Kept) longest() time.Duration { return max(k.Keys, k.Denials, k.Data) }

// Config configures a Verifier.
type Config struct {
	// Trust is what is known from elsewhere. Zero means nothing.
	Trust Trust
	// Kept is for how long records must be there. Zero means that it is not
	// checked.
	Kept Kept
	// MaxUnproved is for how long a log may go on without a checkpoint in
	// Trust.Checkpoints that proves it: a log that is older needs one, and the
	// newest record that one proves must not be older, unless it is the last. Zero
	// means that it is not checked.
	MaxUnproved time.Duration
	// Now is the time from which Kept and MaxUnproved count. Zero means now.
	Now time.Time
}

// Verifier takes the lines of logs and reports on them. Of the logs of
// directories it keeps what does not grow with them, but for about 100 bytes for
// each checkpoint; of the records of streams, which come in any order, it keeps
// about 100 bytes each, and 500 for each checkpoint. It is not safe for concurrent use.
type Verifier struct {
	cfg     Config
	keys    map[string][]string  // Trust.Keys by log
	outside map[string][]outside // Trust.Checkpoints by log, the smallest first
	chains  map[chainID]*chain
	signed  map[signedSize]tlog.Hash // roots that logs have signed

	current *chain    // of the record before, in the same source
	before  *chain    // of the file before, in the same directory
	source  string    // of the line before
	waiting []int     // problems whose place the next record tells
	torn    []Finding // lines that are the only ones of their files

	report Report
	counts map[string]int // problems by log
}

// chainID names a log in one place: copies in two directories are two chains.
type chainID struct{ log, dir string }

type signedSize struct {
	log  string
	size int64
}

// outside is a checkpoint that was kept elsewhere.
type outside struct {
	record.Checkpoint
	note string
}

// New returns a Verifier. It fails if Trust has keys that are none.
func New(cfg Config) (*Verifier, error) {
	if cfg.Now.IsZero() {
		cfg.Now = time.Now()
	}
	v := &Verifier{
		cfg: cfg, keys: make(map[string][]string), outside: make(map[string][]outside), chains: make(map[chainID]*chain),
		signed: make(map[signedSize]tlog.Hash), counts: make(map[string]int),
		report: Report{Logs: []LogReport{}, Problems: []Finding{}, Notes: []Finding{}},
	}
	for _, key := range cfg.Trust.Keys {
		verifier, err := record.NewVerifier(key)
		if err != nil {
			return nil, fmt.Errorf("known key %.80q: %w", key, err)
		}
		v.keys[verifier.Name()] = append(v.keys[verifier.Name()], key)
	}
	for _, key := range cfg.Trust.Signers {
		if key == nil || key.Curve != elliptic.P256() {
			return nil, errors.New("known signer: it is not a P-256 key")
		}
	}
	for i, signed := range cfg.Trust.Checkpoints {
		c, err := record.ParseCheckpoint(signed)
		if err != nil {
			text := fmt.Sprintf("checkpoint %d of those kept elsewhere is none: %v", i+1, err)
			v.problem(Finding{Kind: OutsideForged, From: -1, To: -1, Text: text})
			continue
		}
		v.outside[c.Log] = append(v.outside[c.Log], outside{c, signed})
	}
	for _, all := range v.outside {
		slices.SortStableFunc(all, func(a, b outside) int { return cmp.Compare(a.Size, b.Size) })
	}
	return v, nil
}

// Verify verifies all logs in the paths: see reader.Read.
func Verify(paths []string, stdin io.Reader, cfg Config) (*Report, error) {
	v, err := New(cfg)
	if err != nil {
		return nil, err
	}
	if err := reader.Read(paths, stdin, v.Line); err != nil {
		return nil, err
	}
	return v.Report(), nil
}

// maxSeq bounds the numbers of records: arithmetic with them does not overflow.
const maxSeq = 1 << 53

// Line takes a line. It keeps nothing of l.Text, and always returns nil: so
// it can be given to reader.Read.
func (v *Verifier) Line(l reader.Line) error {
	if l.Source != v.source {
		v.source, v.waiting, v.before, v.current = l.Source, nil, v.current, nil
		if v.before != nil && (!l.Ordered || v.before.id.dir != filepath.Dir(l.Source)) {
			v.before = nil
		}
	}
	if l.Err == nil && l.Record.Seq >= maxSeq {
		l.Err = fmt.Errorf("%w: its number is %d", record.ErrMalformed, l.Record.Seq)
	}
	if l.Err != nil {
		v.malformed(&l)
	} else {
		v.take(&l)
	}
	return nil
}

// take takes a record.
func (v *Verifier) take(l *reader.Line) {
	c := v.chain(l)
	for _, i := range v.waiting {
		f := &v.report.Problems[i]
		f.Log, f.From, f.To = c.id.log, max(0, l.Record.Seq-1), max(0, l.Record.Seq-1)
	}
	v.current, v.waiting = c, nil
	v.leftOver(c, l.Record.Seq)
	c.line(l)
}

// leftOver is about files without a whole line. If a log's records follow that are
// not its first, they were in such a file.
func (v *Verifier) leftOver(c *chain, seq int64) {
	for _, f := range v.torn {
		if c != nil && c.ordered && seq > 0 && c.id.dir == filepath.Dir(f.Source) {
			f.Log, f.From, f.To = c.id.log, min(c.expected(), seq-1), seq-1
			v.problem(f)
			continue
		}
		f.Kind = Torn
		v.note(f)
	}
	v.torn = nil
}

// chain returns the chain of a record.
func (v *Verifier) chain(l *reader.Line) *chain {
	id := chainID{log: l.Record.Log}
	if l.Ordered {
		id.dir = filepath.Dir(l.Source)
	}
	c := v.chains[id]
	if c == nil {
		c = newChain(v, id, l.Ordered)
		v.chains[id] = c
	}
	return c
}

// malformed records a line that is not a record. It belongs to the log that it
// names, or to that of the lines before, or after.
func (v *Verifier) malformed(l *reader.Line) {
	f := Finding{Kind: Malformed, From: -1, To: -1, Source: l.Source, Line: l.Number, Text: l.Err.Error()}
	c := cmp.Or(v.named(l), v.current, v.before)
	if c != nil {
		f.Log, f.From, f.To = c.id.log, c.expected(), c.expected()
	}
	switch {
	case l.Torn && c != nil:
		c.torn = append(c.torn, f)
	case l.Torn:
		v.torn = append(v.torn, f)
	case v.problem(f) && v.current == nil:
		v.waiting = append(v.waiting, len(v.report.Problems)-1)
	}
}

// named returns the chain of the log that a line names, if there is one.
func (v *Verifier) named(l *reader.Line) *chain {
	text, ok := strings.CutPrefix(string(l.Text), `{"log":"`)
	if !ok {
		return nil
	}
	id := chainID{}
	id.log, _, _ = strings.Cut(text, `"`)
	if l.Ordered {
		id.dir = filepath.Dir(l.Source)
	}
	return v.chains[id]
}

// most is how many problems of a log are listed.
const most = 1000

// problem adds a problem. It returns false if there are too many.
func (v *Verifier) problem(f Finding) bool {
	v.counts[f.Log]++
	if v.counts[f.Log] > most {
		v.report.MoreProblems++
		return false
	}
	v.report.Problems = append(v.report.Problems, f)
	return true
}

func (v *Verifier) note(f Finding) { v.report.Notes = append(v.report.Notes, f) }

// Report returns what was found out. It is called once, after the last line.
func (v *Verifier) Report() *Report {
	var all []*chain
	for _, c := range v.chains {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *chain) int {
		return cmp.Or(strings.Compare(a.id.log, b.id.log), strings.Compare(a.id.dir, b.id.dir))
	})
	v.leftOver(nil, 0)
	for _, c := range all {
		c.end()
	}
	v.together(all)
	for _, c := range all {
		c.judge()
		v.report.Logs = append(v.report.Logs, c.report)
	}
	v.keptNotes()
	if len(all) == 0 {
		v.note(Finding{Kind: Empty, From: -1, To: -1, Text: "there are no records of audit logs"})
	}
	byPlace := func(a, b Finding) int { return cmp.Or(strings.Compare(a.Log, b.Log), cmp.Compare(a.From, b.From)) }
	slices.SortStableFunc(v.report.Problems, byPlace)
	slices.SortStableFunc(v.report.Notes, byPlace)
	return &v.report
}
