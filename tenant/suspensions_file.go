package tenant

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// suspensionsVersion is the version of the state file's format.
const suspensionsVersion = 1

// suspensionsFile is suspensions.json. The tenants are in order, each once.
type suspensionsFile struct {
	Version     int                `json:"version"`
	Suspensions []suspensionRecord `json:"suspensions"`
}

type suspensionRecord struct {
	Tenant string `json:"tenant"`
	By     string `json:"by"`
	Reason string `json:"reason"`
	At     string `json:"at"` // RFC 3339 in UTC
}

// encodeSuspensions returns the state file, with a line for each suspension.
func encodeSuspensions(all map[ID]Suspension) []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, `{"version":%d,"suspensions":[`, suspensionsVersion)
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	for i, x := range sorted(all) {
		if i > 0 {
			out.WriteByte(',')
		}
		out.WriteByte('\n')
		r := suspensionRecord{Tenant: x.Tenant.s, By: x.By, Reason: x.Reason, At: x.At.Format(time.RFC3339Nano)}
		if err := e.Encode(r); err != nil {
			panic("tenant: internal error: " + err.Error())
		}
		out.Truncate(out.Len() - 1) // the line feed of Encode: the comma comes first
	}
	out.WriteString("\n]}\n")
	return out.Bytes()
}

// decodeSuspensions is the inverse of encodeSuspensions: of what that cannot
// have written it takes only white space, as of a hand that took a tenant out.
func decodeSuspensions(raw []byte) (map[ID]Suspension, error) {
	var f suspensionsFile
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, err
	}
	if f.Version != suspensionsVersion {
		return nil, fmt.Errorf("version is %d, not %d", f.Version, suspensionsVersion)
	}
	if n := len(f.Suspensions); n > maxSuspensions {
		return nil, fmt.Errorf("%d suspensions are over %d", n, maxSuspensions)
	}
	all := make(map[ID]Suspension, len(f.Suspensions))
	for i := range f.Suspensions {
		x, err := f.Suspensions[i].suspension()
		if err != nil {
			return nil, fmt.Errorf("suspensions[%d]: %w", i, err)
		}
		all[x.Tenant] = x
	}
	// encoding/json lets the last of two fields win, drops those that it does
	// not know, and more. Writing what it read shows all of that.
	if !bytes.Equal(compact(raw), compact(encodeSuspensions(all))) {
		return nil, errors.New("it is not as a sidecar writes it: a field or tenant is unknown, missing, " +
			"given twice or out of order, or a text is escaped needlessly")
	}
	return all, nil
}

func (r *suspensionRecord) suspension() (Suspension, error) {
	id, err := Parse(r.Tenant)
	if err != nil {
		return Suspension{}, fmt.Errorf("tenant %q: %w", r.Tenant, err)
	}
	at, err := time.Parse(time.RFC3339Nano, r.At)
	if err != nil {
		return Suspension{}, err
	}
	x := Suspension{Tenant: id, By: r.By, Reason: r.Reason, At: at.UTC()}
	return x, x.check()
}

// compact returns valid JSON without its white space.
func compact(raw []byte) []byte {
	var out bytes.Buffer
	if err := json.Compact(&out, raw); err != nil {
		panic("tenant: internal error: " + err.Error())
	}
	return out.Bytes()
}
