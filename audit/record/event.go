package record

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Kind says what an event is about.
type Kind string

// The kinds of events. Those of the log itself, of keys, of the configuration
// and of operators are of class Keys.
const (
	// Start is the first record of a log: its sidecar has started.
	Start Kind = "start"
	// Stop is the last record of a log that was closed.
	Stop Kind = "stop"
	// Alive is written when nothing else was for a while.
	Alive Kind = "alive"
	// Unaccounted says that a sidecar ended without a Stop: what it did
	// between From and To may be missing.
	Unaccounted Kind = "unaccounted"
	// CheckpointMade holds a signed checkpoint of all records before it.
	CheckpointMade Kind = "checkpoint"
	// Segment begins a file: a checkpoint, and the frontier, of all records
	// before it, and the log's key, so that they can be removed.
	Segment Kind = "segment"
	// Removed says that records from From to To are not kept any longer: Count
	// events, and whole files.
	Removed Kind = "removed"
	// Certified holds Key Vault's signature over the log's public key.
	Certified Kind = "certified"
	// Lost says that Count records found no room while none could be written.
	Lost Kind = "lost"
	// Clock says that the clock was set back, from From to To.
	Clock Kind = "clock"
	// KeyStep is a step in a DEK's life.
	KeyStep Kind = "key"
	// Reload says that configuration files were read again, and taken or not.
	Reload Kind = "reload"
	// Admin is an operator's call.
	Admin Kind = "admin"
	// Denied is an operation that was refused. Class Denials.
	Denied Kind = "denied"
	// Denials are Count such operations that are all alike. Class Denials.
	ManyDenied Kind = "denials"
	// Call is one operation on data. Class Data.
	Call Kind = "call"
	// Calls are Count operations on data that are all alike. Class Data.
	Calls Kind = "calls"
)

// Event is what happened. Which fields an event has follows from its Kind:
// docs/audit-log.md has the table. A field that is zero is not written. All of
// it is metadata: no plaintext, no key, and of encryption contexts what the
// configuration lists.
type Event struct {
	Kind Kind `json:"kind"`
	// Caller is what the policy calls who asked, Identity what it proved.
	Caller   string `json:"caller,omitempty"`
	Identity string `json:"identity,omitempty"`
	// PID is the caller's process, for a caller on a Unix socket.
	PID int32 `json:"pid,omitempty"`
	// Tenant is the tenant ID, if it was well-formed.
	Tenant string `json:"tenant,omitempty"`
	// Verb is what was asked for, as the policy names it.
	Verb string `json:"verb,omitempty"`
	// Result is "OK" or the reason of the error, as the API names it.
	Result string `json:"result,omitempty"`
	// Request is the request id that the caller got.
	Request string `json:"request,omitempty"`
	// Bytes is the size of the data, or the sum of the sizes.
	Bytes int64 `json:"bytes,omitempty"`
	// DEK is the DEK's ID, in hex. KEK, KEKVersion and Region are those of the
	// KEK that unwrapped it.
	DEK        string `json:"dek,omitempty"`
	KEK        string `json:"kek,omitempty"`
	KEKVersion string `json:"kek_version,omitempty"`
	Region     string `json:"region,omitempty"`
	// Step is what happened to the key.
	Step string `json:"step,omitempty"`
	// Context are the entries of the encryption context that the configuration
	// lists.
	Context map[string]string `json:"context,omitempty"`
	// InputBytes and InputSHA256 are of a tenant ID that was not well-formed:
	// its length, and the first 8 bytes of its hash, in hex.
	InputBytes  int64  `json:"input_bytes,omitempty"`
	InputSHA256 string `json:"input_sha256,omitempty"`
	// Count is how many operations it were, From and To when. Of a checkpoint,
	// From is since when operations are counted that no record is about yet; of a
	// start, the time of the last record of the log before.
	Count int64     `json:"count,omitempty"`
	From  time.Time `json:"from,omitzero"`
	To    time.Time `json:"to,omitzero"`
	// Did is what an operator did, Detail what else there is to say.
	Did    string `json:"did,omitempty"`
	Detail string `json:"detail,omitempty"`
	// Version is the program's.
	Version string `json:"version,omitempty"`
	// Key is the log's public key, as a C2SP signed-note verifier key.
	Key string `json:"key,omitempty"`
	// Files are the configuration files, by their paths, with the SHA-256 of
	// each in hex.
	Files map[string]string `json:"files,omitempty"`
	// Log, Size and Root are the log of the sidecar that ran before, and how far
	// it went.
	Log  string `json:"previous_log,omitempty"`
	Size int64  `json:"previous_size,omitempty"`
	Root string `json:"previous_root,omitempty"`
	// Frontier are the roots of the perfect subtrees of the records before, in
	// base64.
	Frontier []string `json:"frontier,omitempty"`
	// Note is a C2SP signed note: a checkpoint or a certificate.
	Note string `json:"note,omitempty"`
	// Certificate is the newest certificate of Key, a signed note.
	Certificate string `json:"certificate,omitempty"`
}

// Append appends e as JSON, its fields in the order of the struct, its maps
// sorted.
func (e *Event) Append(dst []byte) []byte {
	w := writer{append(dst, '{')}
	w.text("kind", string(e.Kind))
	w.text("caller", e.Caller)
	w.text("identity", e.Identity)
	w.number("pid", int64(e.PID))
	w.text("tenant", e.Tenant)
	w.text("verb", e.Verb)
	w.text("result", e.Result)
	w.text("request", e.Request)
	w.number("bytes", e.Bytes)
	w.text("dek", e.DEK)
	w.text("kek", e.KEK)
	w.text("kek_version", e.KEKVersion)
	w.text("region", e.Region)
	w.text("step", e.Step)
	w.object("context", e.Context)
	w.number("input_bytes", e.InputBytes)
	w.text("input_sha256", e.InputSHA256)
	w.number("count", e.Count)
	w.time("from", e.From)
	w.time("to", e.To)
	w.text("did", e.Did)
	w.text("detail", e.Detail)
	w.text("version", e.Version)
	w.text("key", e.Key)
	w.object("files", e.Files)
	w.text("previous_log", e.Log)
	w.number("previous_size", e.Size)
	w.text("previous_root", e.Root)
	w.list("frontier", e.Frontier)
	w.text("note", e.Note)
	w.text("certificate", e.Certificate)
	return append(w.dst, '}')
}

// ParseEvent reads an event. Fields that it does not know are left out: a later
// release may have written them.
func ParseEvent(data []byte) (*Event, error) {
	e := &Event{}
	if err := json.Unmarshal(data, e); err != nil {
		return nil, fmt.Errorf("reading an event: %w", err)
	}
	if e.Kind == "" {
		return nil, fmt.Errorf("reading an event: %w: it has no kind", ErrMalformed)
	}
	return e, nil
}

// writer appends the fields of an event. Those that are zero it leaves out.
type writer struct{ dst []byte }

func (w *writer) key(name string) {
	if w.dst[len(w.dst)-1] != '{' {
		w.dst = append(w.dst, ',')
	}
	w.dst = append(w.dst, '"')
	w.dst = append(w.dst, name...)
	w.dst = append(w.dst, `":`...)
}

func (w *writer) text(name, v string) {
	if v != "" {
		w.key(name)
		w.dst = appendString(w.dst, v)
	}
}

func (w *writer) number(name string, v int64) {
	if v != 0 {
		w.key(name)
		w.dst = strconv.AppendInt(w.dst, v, 10)
	}
}

func (w *writer) time(name string, v time.Time) {
	if !v.IsZero() {
		w.key(name)
		w.dst = append(v.UTC().AppendFormat(append(w.dst, '"'), timeLayout), '"')
	}
}

func (w *writer) list(name string, v []string) {
	if len(v) == 0 {
		return
	}
	w.key(name)
	w.dst = append(w.dst, '[')
	for i, s := range v {
		if i > 0 {
			w.dst = append(w.dst, ',')
		}
		w.dst = appendString(w.dst, s)
	}
	w.dst = append(w.dst, ']')
}

func (w *writer) object(name string, v map[string]string) {
	if len(v) == 0 {
		return
	}
	keys := make([]string, 0, len(v))
	for k := range v {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	w.key(name)
	w.dst = append(w.dst, '{')
	for i, k := range keys {
		if i > 0 {
			w.dst = append(w.dst, ',')
		}
		w.dst = append(appendString(w.dst, k), ':')
		w.dst = appendString(w.dst, v[k])
	}
	w.dst = append(w.dst, '}')
}
