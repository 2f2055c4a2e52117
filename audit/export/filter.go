package export

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/keysidecar/keysidecar/audit/record"
)

// Filter says which records are taken: those that have all of its fields which
// are not zero.
type Filter struct {
	// Tenant, Verb, Caller and Kind are as in record.Event.
	Tenant, Verb, Caller string
	Kind                 record.Kind
	// Class is the record's class.
	Class record.Class
	// From is the first moment, To the one after the last. A record is of the
	// moment when it was written; one about an interval is of all of it, up to
	// when it was written.
	From, To time.Time
}

// verdict is what a filter says of a record.
type verdict uint8

const (
	no verdict = iota
	yes
	unknown // it depends on the event, which was removed
)

func (f *Filter) takes(r *record.Record, e *record.Event) verdict {
	begin := r.Time
	if !e.From.IsZero() && !e.To.IsZero() && e.From.Before(begin) {
		begin = e.From
	}
	switch {
	case f.Class != 0 && f.Class != r.Class,
		!f.From.IsZero() && r.Time.Before(f.From),
		!f.To.IsZero() && !begin.Before(f.To):
		return no
	case r.Pruned() && (f.Tenant != "" || f.Verb != "" || f.Caller != "" || f.Kind != ""):
		return unknown
	case f.Tenant != "" && f.Tenant != e.Tenant, f.Verb != "" && f.Verb != e.Verb,
		f.Caller != "" && f.Caller != e.Caller, f.Kind != "" && f.Kind != e.Kind:
		return no
	}
	return yes
}

// kinds are all that this release writes.
func kinds() []record.Kind {
	return []record.Kind{
		record.Start, record.Stop, record.Alive, record.Unaccounted, record.CheckpointMade, record.Segment,
		record.Removed, record.Certified,
		record.Lost, record.Clock, record.KeyStep, record.Reload, record.Admin, record.Denied, record.ManyDenied, record.Call, record.Calls,
	}
}

// ParseKind reads a kind of events. Of one that there is not, the error has all.
func ParseKind(s string) (record.Kind, error) {
	var names []string
	for _, k := range kinds() {
		if string(k) == s {
			return k, nil
		}
		names = append(names, string(k))
	}
	return "", fmt.Errorf("kind %q is not one of %s", s, strings.Join(names, ", "))
}

// ParseTime reads a time as RFC 3339 has it, or how long before now it is:
// "90m", "24h" or "7d", also with " ago".
func ParseTime(s string, now time.Time) (time.Time, error) {
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return at, nil
	}
	ago, err := ParseDuration(strings.TrimSuffix(s, " ago"))
	if err != nil {
		return time.Time{}, fmt.Errorf("time %q is neither like 2026-11-22T09:30:00Z nor like 90m, 24h or 7d ago", s)
	}
	return now.Add(-ago), nil
}

// ParseDuration reads what time.ParseDuration does, and whole days ("400d"). It
// is never negative.
func ParseDuration(s string) (time.Duration, error) {
	if digits, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(digits, 10, 16); err == nil {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("duration %q is not like 90m, 24h or 7d", s)
	}
	return d, nil
}
