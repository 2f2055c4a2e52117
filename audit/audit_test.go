package audit_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/keysidecar/keysidecar/audit"
	"github.com/keysidecar/keysidecar/audit/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// file is a Sink that keeps lines in memory, and fails or blocks as it is told.
type file struct {
	mu     sync.Mutex
	lines  []byte
	writes int
	err    error
	full   bool
	begun  []int64
	gate   chan struct{} // not nil: Write waits until it is closed
	tried  []byte        // also what failed
	closed bool
	// failAfter is how many writes work before all fail; 0: it fails as err says.
	failAfter int
}

func (f *file) Write(seq int64, lines []byte, begin bool) error {
	f.mu.Lock()
	gate := f.gate
	f.mu.Unlock()
	if gate != nil {
		<-gate
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tried = append(f.tried, lines...)
	if f.failAfter > 0 {
		if f.failAfter--; f.failAfter == 0 {
			f.err = syscall.ENOSPC
		}
	}
	if f.err != nil {
		return f.err
	}
	f.writes++
	if begin {
		f.begun, f.full = append(f.begun, seq), false
	}
	f.lines = append(f.lines, lines...)
	return nil
}

func (f *file) Full() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.full
}

func (f *file) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

func (f *file) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// events checks the whole log, and returns its events: each record follows from
// the one before, and each checkpoint is signed and is of the records before.
func (f *file) events(t *testing.T) []*record.Event {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []*record.Event
	var tree record.Frontier
	var prev record.Link
	for line := range bytes.Lines(f.lines) {
		r, err := record.Parse(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			t.Fatalf("line %d: %v: %s", len(all)+1, err, line)
		}
		if r.Seq != tree.Size() || r.Prev != prev || !r.Intact() {
			t.Fatalf("line %d does not follow: %s", len(all)+1, line)
		}
		e, err := record.ParseEvent(r.Event)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == record.CheckpointMade || e.Kind == record.Segment {
			checkCheckpoint(t, all[0].Key, e, &tree)
		}
		all = append(all, e)
		tree.Add(r.Leaf)
		prev = record.LinkTo(r.Leaf)
	}
	return all
}

func checkCheckpoint(t *testing.T, key string, e *record.Event, tree *record.Frontier) {
	t.Helper()
	v, err := record.NewVerifier(key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := record.OpenCheckpoint(e.Note, v)
	if err != nil || c.Size != tree.Size() || c.Root != tree.Root() {
		t.Fatalf("checkpoint at %d: %v: %s", tree.Size(), err, e.Note)
	}
	if e.Kind == record.CheckpointMade {
		return
	}
	for i, node := range tree.Nodes() {
		if e.Frontier[i] != base64.StdEncoding.EncodeToString(node[:]) {
			t.Fatalf("frontier at %d is %v", tree.Size(), e.Frontier)
		}
	}
}

// kinds returns the events in short.
func kinds(all []*record.Event) string {
	var words []string
	for _, e := range all {
		word := string(e.Kind)
		if e.Count > 0 {
			word = fmt.Sprintf("%s*%d", word, e.Count)
		}
		words = append(words, word+e.Caller)
	}
	return strings.Join(words, " ")
}

const origin = "keysidecar/test/1"

func open(t *testing.T, sink audit.Sink, change func(*audit.Config)) *audit.Log {
	t.Helper()
	cfg := audit.Config{Log: origin, Sink: sink, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	l, err := audit.New(cfg, &record.Event{Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func closeLog(t *testing.T, l *audit.Log) {
	t.Helper()
	if err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func denied(caller string) *record.Event {
	return &record.Event{Kind: record.Denied, Caller: caller, Tenant: "acme", Verb: "seal", Result: "PERMISSION_DENIED", Bytes: 3}
}

func row(caller string) audit.Row {
	return audit.Row{Class: record.Data, Caller: caller, Tenant: "acme", Verb: "seal", Result: "OK"}
}

func TestLog(t *testing.T) {
	f := &file{}
	l := open(t, f, nil)
	if err := l.Append(t.Context(), record.Keys, &record.Event{Kind: record.KeyStep, Step: "wrapped"}); err != nil {
		t.Fatal(err)
	}
	if got := kinds(f.events(t)); got != "start key" {
		t.Errorf("when Append has returned the log has %s", got)
	}
	l.Note(record.Keys, &record.Event{Kind: record.Admin, Did: "evict"})
	l.Count(row("web"), 10)
	l.Count(row("web"), 5)
	if err := l.Denied(t.Context(), denied("web")); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	all := f.events(t)
	if got := kinds(all); got != "start key admin deniedweb calls*2web stop checkpoint" {
		t.Errorf("the log has %s", got)
	}
	if all[0].Key != l.Key() || all[0].Version != "v1" || all[4].Bytes != 15 || !f.closed {
		t.Errorf("start %+v, counted %+v, sink closed %v", all[0], all[4], f.closed)
	}
	if err := l.Append(t.Context(), record.Keys, denied("web")); !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("after Close, Append returned %v", err)
	}
}

// TestGroups shows that what comes while something is written is written at
// once, and that every Append returns when its own record is there.
func TestGroups(t *testing.T) {
	const callers, each = 64, 50
	f := &file{}
	l := open(t, f, nil)
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() {
			for j := range each {
				request := fmt.Sprintf("%d-%d", i, j)
				if err := l.Append(context.Background(), record.Data, &record.Event{Kind: record.Call, Request: request}); err != nil {
					t.Error(err)
				}
				f.mu.Lock()
				there := bytes.Contains(f.lines, []byte(`"request":"`+request+`"`))
				f.mu.Unlock()
				if !there {
					t.Errorf("%s is not written", request)
				}
			}
		})
	}
	group.Wait()
	closeLog(t, l)
	if n := len(f.events(t)); n != callers*each+3 {
		t.Errorf("%d records, want %d", n, callers*each+3)
	}
	t.Logf("%d records in %d writes", callers*each, f.writes)
}

// TestFullDisk shows what goes on while nothing can be written, and that
// nothing of it is lost or invented.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &file{}
		l := open(t, f, nil)
		l.Count(row("web"), 1)
		f.set(func() { f.err = syscall.ENOSPC })
		for range 5 {
			err := l.Append(t.Context(), record.Keys, &record.Event{Kind: record.KeyStep})
			if !errors.Is(err, audit.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("on a full disk Append returned %v", err)
			}
			if err := l.Denied(t.Context(), denied("web")); !errors.Is(err, audit.ErrUnavailable) {
				t.Fatalf("on a full disk Denied returned %v", err)
			}
		}
		if since := l.Stats().Failing; !since.Equal(time.Now()) {
			t.Errorf("failing since %v", since)
		}
		began := time.Now()
		for range 1005 {
			l.Note(record.Keys, &record.Event{Kind: record.Admin, Did: "suspend"})
		}
		for range 3 {
			<-time.After(61 * time.Second) // not when anything is due
			l.Count(row("web"), 1)
		}
		if got := kinds(f.events(t)); got != "start" {
			t.Fatalf("on a full disk the log got %s", got)
		}
		f.set(func() { f.err = nil })
		<-time.After(10 * time.Second)
		closeLog(t, l)
		all := f.events(t)
		if got := strings.ReplaceAll(kinds(all[1000:]), " checkpoint", ""); got != "admin lost*5 calls*4web stop" {
			t.Errorf("the log has %s", got)
		}
		for _, e := range all {
			if e.Kind == record.Calls && !e.From.Equal(began.Truncate(time.Microsecond)) {
				t.Errorf("counted since %v, want %v", e.From, began)
			}
		}
		if !l.Stats().Failing.IsZero() {
			t.Error("failing when written again")
		}
	})
}

// TestBlocked shows that nobody waits longer than WriteTimeout for a sink that
// blocks, that what was refused meanwhile is not written later unless it was
// being written, and that the log goes on afterwards.
func TestBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &file{}
		l := open(t, f, nil)
		gate := make(chan struct{})
		f.set(func() { f.gate = gate })
		start := time.Now()
		refused := func(request string) {
			err := l.Append(t.Context(), record.Data, &record.Event{Kind: record.Call, Request: request})
			if !errors.Is(err, audit.ErrUnavailable) || time.Since(start) != 2*time.Second {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
			start = time.Now()
		}
		refused("first")
		refused("second")
		if err := l.Append(cancelled(t), record.Data, &record.Event{Kind: record.Call, Request: "third"}); !errors.Is(err, context.Canceled) {
			t.Errorf("whose caller left: %v", err)
		}
		f.set(func() { f.gate = nil })
		close(gate)
		synctest.Wait()
		if err := l.Append(t.Context(), record.Data, &record.Event{Kind: record.Call, Request: "fourth"}); err != nil {
			t.Error(err)
		}
		closeLog(t, l)
		var got []string
		for _, e := range f.events(t) {
			if e.Request != "" {
				got = append(got, e.Request)
			}
		}
		if fmt.Sprint(got) != "[first third fourth]" {
			t.Errorf("the log has %v", got)
		}
	})
}

func cancelled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// TestCloseOfABlockedSink shows that Close waits no longer than it may.
func TestCloseOfABlockedSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &file{}
		l := open(t, f, nil)
		gate := make(chan struct{})
		f.set(func() { f.gate = gate })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.Close(ctx); !errors.Is(err, context.DeadlineExceeded) || !f.closed {
			t.Errorf("Close returned %v, sink closed %v", err, f.closed)
		}
		close(gate)
		synctest.Wait()
	})
}

// TestDenials shows that a caller's many denials are counted instead of written
// one by one, and that another caller's are not.
func TestDenials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &file{}
		l := open(t, f, func(c *audit.Config) { c.DenialsPerMinute = 10 })
		for range 25 {
			if err := l.Denied(t.Context(), denied("flood")); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Denied(t.Context(), denied("other")); err != nil {
			t.Fatal(err)
		}
		closeLog(t, l)
		all := f.events(t)
		if got := kinds(all[11:]); got != "deniedother denials*15flood stop checkpoint" {
			t.Errorf("after ten denials the log has %s", got)
		}
		if e := all[12]; e.Tenant != "" || e.Result != "PERMISSION_DENIED" || e.Bytes != 45 {
			t.Errorf("counted %+v", e)
		}
	})
}

// TestRows shows that operations beyond the rows of an interval are counted all
// the same, and that no caller's flood takes another's name or tenants away.
func TestRows(t *testing.T) {
	f := &file{}
	l := open(t, f, func(c *audit.Config) { c.Rows = 1024 })
	for i := range 20_000 {
		r := row("flood")
		r.Tenant = fmt.Sprintf("tenant-%d", i)
		l.Count(r, 2)
	}
	for i := range 50 {
		r := row("victim")
		r.Tenant = fmt.Sprintf("tenant-%d", i)
		l.Count(r, 1)
	}
	closeLog(t, l)
	rows, count := map[string]int{}, map[string]int64{}
	for _, e := range f.events(t) {
		if e.Kind == record.Calls {
			rows[e.Caller]++
			count[e.Caller] += e.Count
			if e.Caller == "victim" && (e.Tenant == "" || e.Detail != "") {
				t.Errorf("victim's calls without their tenant: %+v", e)
			}
		}
	}
	if rows["flood"] > 257 || count["flood"] != 20_000 || rows["victim"] != 50 || count["victim"] != 50 || len(rows) != 2 {
		t.Errorf("%v rows with %v operations", rows, count)
	}
}

// TestManyCallers shows that callers beyond those that have rows are counted too.
func TestManyCallers(t *testing.T) {
	f := &file{}
	l := open(t, f, func(c *audit.Config) { c.Rows = 32 })
	for i := range 1000 {
		l.Count(row(fmt.Sprintf("caller-%d", i)), 2)
	}
	closeLog(t, l)
	var rows, count, bytes, nobody int64
	for _, e := range f.events(t) {
		if e.Kind == record.Calls {
			rows, count, bytes = rows+1, count+e.Count, bytes+e.Bytes
			if e.Caller == "" && strings.Contains(e.Detail, "callers beyond") {
				nobody++
			}
		}
	}
	if rows > 48 || count != 1000 || bytes != 2000 || nobody == 0 {
		t.Errorf("%d rows with %d operations of %d bytes, %d of nobody", rows, count, bytes, nobody)
	}
}

// TestRoom shows what is still recorded when room runs out, and that it is said.
func TestRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var used atomic.Int64
		f, out := &file{}, &strings.Builder{}
		l := open(t, f, func(c *audit.Config) {
			c.Room = func() (int64, int64) { return used.Load(), 1600 }
			c.Logger = slog.New(slog.NewTextHandler(out, nil))
		})
		step, call := &record.Event{Kind: record.KeyStep}, &record.Event{Kind: record.Call, Caller: "web"}
		for _, at := range []struct {
			used                  int64
			data, keys, singleOne bool
		}{{1200, true, true, true}, {1201, false, true, false}, {1500, false, true, false}, {1501, false, false, false}, {0, true, true, true}} {
			used.Store(at.used)
			before := len(f.events(t))
			if err := l.Append(t.Context(), record.Data, call); (err == nil) != at.data || err != nil && !errors.Is(err, audit.ErrUnavailable) {
				t.Errorf("with %d used, a call: %v", at.used, err)
			}
			if err := l.Append(t.Context(), record.Keys, step); (err == nil) != at.keys {
				t.Errorf("with %d used, a key: %v", at.used, err)
			}
			if err := l.Append(t.Context(), record.Keys, &record.Event{Kind: record.Reload}); err != nil {
				t.Errorf("with %d used, a reload: %v", at.used, err)
			}
			if err := l.Denied(t.Context(), denied("web")); err != nil {
				t.Errorf("with %d used, a denial: %v", at.used, err)
			}
			want := 1
			for _, ok := range []bool{at.data, at.keys, at.singleOne} {
				if ok {
					want++
				}
			}
			if n := len(f.events(t)) - before; n != want {
				t.Errorf("with %d used: %d records, want %d", at.used, n, want)
			}
		}
		used.Store(1300)
		l.Count(row("web"), 1)
		r := row("web")
		r.Tenant = "globex"
		l.Count(r, 1)
		<-time.After(time.Minute)
		closeLog(t, l)
		if got := kinds(f.events(t)); !strings.Contains(got, "denials*3web calls*2web") {
			t.Errorf("when room runs out, tenants are counted together, and denials: %s", got)
		}
		if n := strings.Count(out.String(), "half full"); n != 1 {
			t.Errorf("said %d times that room runs out:\n%s", n, out)
		}
	})
}

// TestSegments shows that a segment begins with a checkpoint and a frontier, and
// that one that cannot be begun is begun later.
func TestSegments(t *testing.T) {
	f := &file{}
	l := open(t, f, nil)
	const certificate = "a certificate"
	if err := l.Certify(t.Context(), certificate); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		f.set(func() { f.full = true })
		if i%3 == 1 {
			f.set(func() { f.err = syscall.ENOSPC })
			if err := l.Append(t.Context(), record.Keys, denied("web")); !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			f.set(func() { f.err = nil })
		}
		if err := l.Append(t.Context(), record.Keys, denied("web")); err != nil {
			t.Fatal(err)
		}
	}
	closeLog(t, l)
	for i, seq := range f.begun {
		if want := max(0, int64(2*i)); seq != want {
			t.Errorf("segment %d begins with record %d, want %d", i, seq, want)
		}
	}
	n := 0
	for _, e := range f.events(t) {
		if e.Kind != record.Segment {
			continue
		}
		if n++; e.Key != l.Key() || e.Certificate != certificate {
			t.Errorf("segment with key %q, certificate %q", e.Key, e.Certificate)
		}
	}
	if n != 20 || len(f.begun) != 21 {
		t.Errorf("%d segment records, %d segments", n, len(f.begun))
	}
}

// TestClock shows that a clock set back is recorded, and that the log says when
// it lives.
func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var back time.Duration
		f := &file{}
		l := open(t, f, func(c *audit.Config) { c.Now = func() time.Time { return time.Now().Add(-back) } })
		f.set(func() { back = time.Hour })
		if err := l.Append(t.Context(), record.Keys, denied("web")); err != nil {
			t.Fatal(err)
		}
		if all := f.events(t); kinds(all) != "start clock deniedweb" || all[1].From.Sub(all[1].To) != time.Hour {
			t.Errorf("the log has %s: %+v", kinds(all), all[1])
		}
		<-time.After(21 * time.Minute)
		closeLog(t, l)
		if got := kinds(f.events(t)[3:]); got != "checkpoint alive checkpoint alive checkpoint stop checkpoint" {
			t.Errorf("then it has %s", got)
		}
	})
}

// TestLongEvents shows that no event is too long for a line, whatever is in it.
func TestLongEvents(t *testing.T) {
	f := &file{}
	l := open(t, f, nil)
	long := map[string]string{}
	for i := range 16 {
		long[fmt.Sprint(i)] = strings.Repeat("\x01", 1000)
	}
	e := denied("web")
	e.Context, e.Detail = long, strings.Repeat("\U0001f600", 20_000)
	if err := l.Append(t.Context(), record.Keys, e); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	got := f.events(t)[1]
	if got.Caller != "web" || !strings.Contains(got.Detail, "(cut: the event has ") || len(got.Context) != 16 || got.Context["3"] != long["3"][:16] {
		t.Errorf("the record is %+v", got)
	}
}

func TestStart(t *testing.T) {
	f := &file{err: syscall.ENOSPC}
	_, err := audit.New(audit.Config{Log: origin, Sink: f, Logger: slog.New(slog.DiscardHandler)}, &record.Event{})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("on a full disk New returned %v", err)
	}
	for want, cfg := range map[string]audit.Config{
		"are required": {Log: origin},
		"log origin":   {Log: "a b", Sink: f, Logger: slog.New(slog.DiscardHandler)},
	} {
		if _, err := audit.New(cfg, &record.Event{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New returned %v, want an error with %q", err, want)
		}
	}
	if o := audit.NewOrigin("böse/\x00 name", time.Now()); record.CheckOrigin(o) != nil || strings.Count(o, "/") != 2 {
		t.Errorf("origin %q", o)
	}
	if o := audit.NewOrigin(strings.Repeat("x", 300), time.Now()); record.CheckOrigin(o) != nil {
		t.Errorf("origin %q", o)
	}
}

// TestOneRootOfASize shows that a size is never signed with two roots, whatever
// could not be written in between.
func TestOneRootOfASize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &file{}
		l := open(t, f, nil)
		for i := range 50 {
			f.set(func() {
				f.full = i%5 == 0
				if f.err = nil; i%2 == 0 {
					f.err = syscall.EIO
				}
			})
			l.Count(row(fmt.Sprint(i)), 1)
			_ = l.Append(t.Context(), record.Keys, denied("web"))
			<-time.After(20 * time.Second)
		}
		f.set(func() { f.err = nil })
		closeLog(t, l)
		roots := map[int64]map[[32]byte]bool{}
		for line := range bytes.Lines(f.tried) {
			r, err := record.Parse(bytes.TrimSpace(line))
			if err != nil {
				t.Fatal(err)
			}
			e, err := record.ParseEvent(r.Event)
			if err != nil || e.Kind != record.CheckpointMade && e.Kind != record.Segment {
				continue
			}
			c, err := record.ParseCheckpoint(e.Note)
			if err != nil {
				t.Fatal(err)
			}
			if roots[c.Size] == nil {
				roots[c.Size] = map[[32]byte]bool{}
			}
			roots[c.Size][c.Root] = true
		}
		for size, all := range roots {
			if len(all) != 1 {
				t.Errorf("size %d was signed with %d roots", size, len(all))
			}
		}
		if len(roots) < 20 {
			t.Errorf("%d checkpoints", len(roots))
		}
	})
}

// TestSegmentSaysWhatIsNotCounted shows that the first record of a file does not
// take counts for written that come after it.
func TestSegmentSaysWhatIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		f := &file{}
		l := open(t, f, func(c *audit.Config) { c.CheckpointInterval = time.Hour })
		l.Count(row("web"), 1)
		f.set(func() { f.full = true })
		<-time.After(time.Minute)
		synctest.Wait()
		all := f.events(t)
		if kinds(all) != "start segment calls*1web" || !all[1].From.Equal(began) || all[2].To.Sub(began) != time.Minute {
			t.Errorf("the log has %s; the segment says from %v", kinds(all), all[1].From)
		}
		closeLog(t, l)
		all = f.events(t)
		if last := all[len(all)-1]; last.Kind != record.CheckpointMade || last.From.Sub(began) != time.Minute {
			t.Errorf("the last checkpoint says from %v", last.From)
		}
	})
}

// TestBlockedIsTold shows that a sink that does not answer counts as failing.
func TestBlockedIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &file{}
		l := open(t, f, nil)
		gate := make(chan struct{})
		f.set(func() { f.gate = gate })
		if err := l.Append(t.Context(), record.Keys, denied("web")); !errors.Is(err, audit.ErrUnavailable) {
			t.Fatal(err)
		}
		if l.Stats().Failing.IsZero() {
			t.Error("nothing fails though nothing is written")
		}
		f.set(func() { f.gate = nil })
		close(gate)
		synctest.Wait()
		if !l.Stats().Failing.IsZero() {
			t.Error("it fails though it is written")
		}
		closeLog(t, l)
	})
}

// TestStartBlocked shows that New does not wait for ever, and that a log whose
// opening records are not all written does not look like one that ended.
func TestStartBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &file{gate: make(chan struct{})}
		start := time.Now()
		cfg := audit.Config{Log: origin, Sink: f, Logger: slog.New(slog.DiscardHandler)}
		_, err := audit.New(cfg, &record.Event{}, &record.Event{Kind: record.Unaccounted})
		if !errors.Is(err, audit.ErrUnavailable) || time.Since(start) > 5*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		close(f.gate)
		synctest.Wait()
		if got := kinds(f.events(t)); strings.Contains(got, "stop") {
			t.Errorf("the log has %s", got)
		}
	})
}

// TestManyRows shows that rows are written in parts, and that what could not be
// written is written later, once.
func TestManyRows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &file{}
		l := open(t, f, func(c *audit.Config) { c.Rows = 100_000; c.CheckpointInterval = time.Hour })
		for i := range 5000 {
			l.Count(row(fmt.Sprint(i)), 1)
		}
		f.set(func() { f.failAfter = 2 })
		<-time.After(time.Minute)
		synctest.Wait()
		if n := len(f.events(t)); n != 1+2000 {
			t.Fatalf("%d records when the second part cannot be written, want 2001", n)
		}
		f.set(func() { f.err = nil })
		closeLog(t, l)
		rows := map[string]int64{}
		for _, e := range f.events(t) {
			if e.Kind == record.Calls {
				rows[e.Caller] += e.Count
			}
		}
		for caller, n := range rows {
			if n != 1 {
				t.Errorf("%s is counted %d times", caller, n)
			}
		}
		if len(rows) != 5000 {
			t.Errorf("%d callers", len(rows))
		}
	})
}

// lazyFile is a file whose data are safe when it is synced.
type lazyFile struct {
	file
	safe    int // bytes
	soon    int // calls
	syncErr error
}

func (f *lazyFile) Write(seq int64, lines []byte, begin bool) error {
	err := f.file.Write(seq, lines, begin)
	f.set(func() { f.safe = len(f.lines) })
	return err
}

func (f *lazyFile) WriteSoon(seq int64, lines []byte) error {
	f.set(func() { f.soon++ })
	return f.file.Write(seq, lines, false)
}

func (f *lazyFile) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.syncErr == nil {
		f.safe = len(f.lines)
	}
	return f.syncErr
}

func (f *lazyFile) unsafe() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.safe < len(f.lines)
}

// TestSync shows that records of class Data are safe soon, and others before
// Append returns, also those that came together with data.
func TestSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &lazyFile{}
		l := open(t, f, func(c *audit.Config) { c.WriteSoon, c.Sync = f.WriteSoon, f.Sync })
		add := func(class record.Class) {
			t.Helper()
			if err := l.Append(t.Context(), class, denied("web")); err != nil {
				t.Fatal(err)
			}
		}
		add(record.Data)
		if !f.unsafe() || f.soon != 1 {
			t.Error("data is synced before its answer")
		}
		<-time.After(50 * time.Millisecond)
		synctest.Wait()
		if f.unsafe() {
			t.Error("data is not safe after the interval")
		}
		for _, class := range []record.Class{record.Keys, record.Denials} {
			add(record.Data)
			add(class)
			if f.unsafe() {
				t.Errorf("class %v is not safe when Append returns", class)
			}
		}
		f.set(func() { f.syncErr = syscall.EIO })
		add(record.Data)
		<-time.After(60 * time.Millisecond)
		synctest.Wait()
		if l.Stats().Failing.IsZero() {
			t.Error("nothing fails though data is not safe")
		}
		f.set(func() { f.syncErr = nil })
		<-time.After(50 * time.Millisecond)
		synctest.Wait()
		if f.unsafe() || !l.Stats().Failing.IsZero() {
			t.Error("data is not synced again")
		}
		f.set(func() { f.full = true })
		add(record.Data)
		if f.unsafe() {
			t.Error("a segment was begun with data that is not safe")
		}
		closeLog(t, l)
		f.events(t)
	})
}

// TestSyncAtOnce shows that without these functions all records are safe.
func TestSyncAtOnce(t *testing.T) {
	f := &lazyFile{}
	l := open(t, f, nil)
	if err := l.Append(t.Context(), record.Data, denied("web")); err != nil || f.unsafe() || f.soon > 0 {
		t.Errorf("%v, %d lazy writes", err, f.soon)
	}
	closeLog(t, l)
}

// TestCloseTellsWhatIsLost shows it of a sink that never works again.
func TestCloseTellsWhatIsLost(t *testing.T) {
	f := &file{}
	l := open(t, f, nil)
	f.set(func() { f.err = syscall.ENOSPC })
	l.Count(row("web"), 1)
	l.Note(record.Keys, denied("web"))
	if err := l.Close(t.Context()); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "1 records and 1 counts") {
		t.Errorf("Close returned %v", err)
	}
}

// TestCountDoesNotAllocate is about operations of which there was one already.
func TestCountDoesNotAllocate(t *testing.T) {
	l := open(t, &file{}, nil)
	defer closeLog(t, l)
	r := row("web")
	if n := testing.AllocsPerRun(1000, func() { l.Count(r, 1) }); n != 0 {
		t.Errorf("Count allocates %v times", n)
	}
}
