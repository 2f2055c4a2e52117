package sidecar_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/verify"
	"github.com/keysidecar/keysidecar/client"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
)

// endInWrite has the system end this process when the newest file in dir would
// get more bytes than processBytes says: they are written, and then it is gone,
// in the middle of its write.
func endInWrite(dir string) error {
	text := os.Getenv(processBytes)
	if text == "" {
		return nil
	}
	more, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return err
	}
	if os.Getenv(processEarly) == "" {
		name, err := newestFile(dir)
		if err != nil {
			return err
		}
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		more += uint64(info.Size())
	}
	// Go has a handler of its own for the signal, which does nothing.
	action, err := unix.MmapPtr(-1, 0, nil, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(syscall.SIGXFSZ), uintptr(action), 0, 8, 0, 0); errno != 0 {
		return errno
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return err
	}
	return unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: more, Max: more})
}

// newestFile returns the file that was written last. Names tell the second only.
func newestFile(dir string) (newest string, err error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	var at time.Time
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return "", err
		}
		if t := info.ModTime(); newest == "" || t.After(at) || t.Equal(at) && name > newest {
			newest, at = name, t
		}
	}
	if newest == "" {
		return "", fmt.Errorf("no log in %s: %w", dir, err)
	}
	return newest, nil
}

// A witnessed is what callers were told, by sidecars that were killed.
type witnessed struct {
	t    *testing.T
	site *site
	dir  string // of the sidecar's files
	logs string // the directory

	mu     sync.Mutex
	told   map[string]bool // that have to be in the log once
	number int
	plain  []time.Time // when the process answered calls that are counted

	deaths []death
}

func newWitnessed(t *testing.T, keys string) *witnessed {
	t.Helper()
	site := newSite(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: listed, audit: full", "id: plain")
	set.config = "reload_interval: 0s"
	set.tiny = true // what was unsealed is cold soon
	w := &witnessed{t: t, site: site, dir: shortDir(t), told: make(map[string]bool)}
	w.logs = set.auditTo(t, "context: [id, more], denials_per_minute: 1000000, "+keys)
	if _, err := set.write(w.dir, site.Addr(), site.CAFile(), site.TokenFile()); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *witnessed) socket() string { return filepath.Join(w.dir, "s.sock") }

// start begins a process, and returns when it serves, or is dead.
func (w *witnessed) start(env ...string) *life {
	w.t.Helper()
	l := user{}.begin(w.t, auditedProcess, w.dir, append(env, processDir+"="+w.dir)...)
	select {
	case <-l.ready:
	case <-l.ended:
	case <-time.After(time.Minute):
		w.t.Fatal("the process neither serves nor ends")
	}
	return l
}

// next returns a number that no call had before.
func (w *witnessed) next() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.number++
	return fmt.Sprintf("%06d", w.number)
}

// was remembers what a caller was told.
func (w *witnessed) was(told string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told[told] {
		w.t.Errorf("%s twice", told)
	}
	w.told[told] = true
}

// counted remembers when a caller was told what is only counted.
func (w *witnessed) counted() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.plain = append(w.plain, time.Now())
}

// round makes a call of each kind that has a record of its own, and remembers
// those that were answered. It returns false when the sidecar is gone.
func (w *witnessed) round(rpc keysidecarv1.SealServiceClient) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	id := w.next()
	pairs := map[string]string{"id": id, "more": strings.Repeat(".", 500)} // a file is full soon
	sealed, err := rpc.Seal(ctx, &keysidecarv1.SealRequest{Tenant: "listed", Plaintext: []byte("data"), EncryptionContext: pairs})
	if err != nil {
		return w.gone(err)
	}
	w.was("seal " + id)
	if _, err = rpc.Unseal(ctx, &keysidecarv1.UnsealRequest{Tenant: "listed", Sealed: sealed.GetSealed(), EncryptionContext: pairs}); err != nil {
		return w.gone(err)
	}
	w.was("unseal " + id)
	if _, err = rpc.Seal(ctx, &keysidecarv1.SealRequest{Tenant: "plain", Plaintext: []byte("data")}); err != nil {
		return w.gone(err)
	}
	w.counted()
	_, err = rpc.Seal(ctx, &keysidecarv1.SealRequest{Tenant: "nobody"})
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetReason() == "UNKNOWN_TENANT" {
			w.was("denied " + info.GetMetadata()["request_id"])
			return true
		}
	}
	return w.gone(err)
}

// gone wants that an error is one of a connection.
func (w *witnessed) gone(err error) bool {
	if got := reasonOf(err); got != "Unavailable" && got != "DeadlineExceeded" {
		w.t.Errorf("a caller got %s: %v", got, err)
	}
	return false
}

// operate does what operators do, one after another, until the sidecar is gone.
func (w *witnessed) operate(rpc keysidecarv1.SealServiceClient) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	operator, err := client.DialAdmin(filepath.Join(w.dir, "admin.sock"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer operator.Close()
	if !w.round(rpc) {
		return
	}
	for _, do := range []func() error{
		func() error { _, err := operator.EvictAll(ctx); return err },
		func() error { _, err := operator.Reload(ctx); return err },
		func() error { _, err := operator.Resume(ctx, "plain"); return err },
	} {
		if err := do(); err != nil {
			return
		}
	}
	w.round(rpc)
}

// timesIn returns how often each thing that a caller can have been told is in
// the log.
func timesIn(all []logged) map[string]int {
	times := make(map[string]int)
	for _, l := range all {
		switch l.Kind {
		case record.Call:
			times[l.Verb+" "+l.Context["id"]]++
		case record.Denied:
			times["denied "+l.Request]++
		default:
		}
	}
	return times
}

// account wants that all that was told is in the logs, once, and nothing else
// is there twice.
func (w *witnessed) account() {
	w.t.Helper()
	times := timesIn(logIn(w.t, w.logs))
	missing := 0
	for told := range w.told {
		if times[told] == 0 {
			missing++
			w.t.Errorf("a caller was told, and nobody recorded: %s", told)
		}
	}
	for what, n := range times {
		if n > 1 {
			w.t.Errorf("recorded %d times: %s", n, what)
		}
	}
	w.t.Logf("%d answers that callers got, %d of them missing in %d records of calls", len(w.told), missing, len(times))
}

// A death is the end of a process.
type death struct {
	point       string
	origin      string // of its log, which may have no record yet
	torn        bool   // its last line
	alive, dead time.Time
	plain       []time.Time // when it answered calls that are counted
}

// died notes the death of a process that was alive at a time.
func (w *witnessed) died(point string, alive time.Time) {
	w.t.Helper()
	d := death{point: point, alive: alive, dead: time.Now(), plain: w.plain}
	w.plain = nil
	name, err := newestFile(w.logs)
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		w.t.Fatal(err)
	}
	d.torn = len(raw) > 0 && raw[len(raw)-1] != '\n'
	id, _, _ := strings.Cut(filepath.Base(name), ".")
	d.origin = "keysidecar/test/" + id
	w.deaths = append(w.deaths, d)
}

// A chained is one log of a directory with what it came to.
type chained struct {
	records []logged
	tree    record.Frontier
}

// chain wants that each log says how far the one before went and, if that was
// killed, in which time something may be missing.
func (w *witnessed) chain() {
	w.t.Helper()
	var logs []*chained
	for _, l := range logIn(w.t, w.logs) {
		if l.Seq == 0 {
			logs = append(logs, &chained{})
		}
		c := logs[len(logs)-1]
		c.records = append(c.records, l)
		c.tree.Add(l.Leaf)
	}
	slices.SortFunc(logs, func(a, b *chained) int { return a.records[0].Time.Compare(b.records[0].Time) })
	deaths := make(map[string]death)
	for _, d := range w.deaths {
		deaths[d.origin] = d
	}
	var owed []owing
	for i, c := range logs[1:] {
		last, start := logs[i], c.records[0]
		root := last.tree.Root()
		if start.Event.Log != last.records[0].Record.Log || start.Size != last.tree.Size() ||
			start.Root != base64.StdEncoding.EncodeToString(root[:]) {
			w.t.Errorf("%s has %d records, and the next log begins with %s", last.records[0].Record.Log, last.tree.Size(), start.raw)
		}
		if d, killed := deaths[last.records[0].Record.Log]; killed {
			owed = append(owed, owing{d, last})
		}
		if len(c.records) == 1 {
			continue // killed before it could say more: the next one has to
		}
		if gap := c.records[1]; len(owed) == 0 != (gap.Kind != record.Unaccounted) {
			w.t.Errorf("%d were killed, and the next log goes on with %s", len(owed), gap.raw)
		} else if len(owed) > 0 {
			w.unaccounted(owed, &gap)
		}
		owed = nil
	}
}

// An owing is a death that a later log has to tell of, and its log.
type owing struct {
	death

	log *chained
}

// unaccounted checks what is said of processes that were killed.
func (w *witnessed) unaccounted(owed []owing, gap *logged) {
	w.t.Helper()
	for _, d := range owed {
		answered := 0
		for _, at := range d.plain {
			if at.Before(gap.From) {
				answered++
			}
		}
		if n := summed(d.log.records)[alike{"me", "plain", "seal", "OK"}].count; n < int64(answered) {
			w.t.Errorf("killed %s: %d calls were answered before the unaccounted time, and %d were counted", d.point, answered, n)
		}
		alive := d.alive
		if begun := d.log.records[min(1, len(d.log.records)-1)].Time; begun.After(alive) { // before that it serves nobody
			alive = begun
		}
		if gap.From.After(alive) || gap.To.Before(d.dead) {
			w.t.Errorf("killed %s: unaccounted from %s to %s, but it died after %s, and before %s", d.point, gap.From, gap.To, alive, d.dead)
		}
	}
	d := owed[len(owed)-1]
	if gap.Event.Log != d.origin || strings.Contains(gap.Detail, "cut off") != d.torn {
		w.t.Errorf("killed %s, its last line torn %v: %s", d.point, d.torn, gap.raw)
	}
}

// finish ends a last process in good order, and wants that all that was told is
// there, and that nothing is wrong with the logs.
func (w *witnessed) finish() {
	w.t.Helper()
	l := w.start()
	if !w.round(keysidecarv1.NewSealServiceClient(connect(w.t, w.socket()))) {
		w.t.Error("the last sidecar does not serve")
	}
	l.leave(w.t)
	w.start().leave(w.t) // after which there is nothing to say
	w.account()
	w.chain()
	logs := verified(w.t, nil, verify.Config{}, w.logs)
	points, torn := make(map[string]int), 0
	for _, d := range w.deaths {
		points[d.point]++
		if d.torn {
			torn++
		}
	}
	w.t.Logf("%d processes were killed, %d of them with a torn line: %v; %d logs", len(w.deaths), torn, points, len(logs))
}

// endsOf returns where the lines of a log end: the first two, and the others,
// counted from there.
func endsOf(t *testing.T, dir string) (first [2]int64, others []int64) {
	t.Helper()
	raw, err := os.ReadFile(must(newestFile(dir)))
	if err != nil {
		t.Fatal(err)
	}
	var at int64
	for i, line := range bytes.SplitAfter(raw, []byte("\n")) {
		at += int64(len(line))
		switch {
		case i < len(first):
			first[i] = at
		case len(line) > 0:
			others = append(others, at-first[1])
		}
	}
	return first, others
}

// killedBySystem waits for a process that gets no further than a byte of its
// log.
func (w *witnessed) killedBySystem(l *life) {
	w.t.Helper()
	select {
	case <-l.ended:
	case <-time.After(20 * time.Second):
		w.t.Fatalf("the process is not ended in its write")
	}
	if status := l.end(w.t); !status.Signaled() || status.Signal() != syscall.SIGXFSZ {
		w.t.Errorf("the process was not ended in a write, but with %#x: %s", status, l.stderr)
	}
}

// TestAuditKilledInEachWrite has the system end a sidecar at the beginning, in
// the middle and at the end of each line that it writes, the first two among
// them; and between each record and its answer.
func TestAuditKilledInEachWrite(t *testing.T) {
	t.Parallel()
	w := newWitnessed(t, "")
	serve := func() time.Time {
		alive := time.Now()
		w.operate(keysidecarv1.NewSealServiceClient(connect(t, w.socket())))
		return alive
	}
	// The first one of all has no log before it. The second is the model.
	w.start().leave(t)
	l := w.start()
	alive := serve()
	l.kill(t)
	w.died("when idle", alive)
	first, ends := endsOf(t, w.logs)
	var from int64
	for _, end := range ends {
		for at, name := range map[int64]string{from: "before a line", (from + end) / 2: "in a line", end - 1: "before a line feed"} {
			l := w.start(processBytes + "=" + strconv.FormatInt(at, 10))
			alive := serve()
			w.killedBySystem(l)
			w.died(name, alive)
		}
		from = end
	}
	// The second line is as long as the first process was cut short.
	for _, at := range []int64{0, 1, first[0] / 2, first[0] - 1, first[0], first[0] + 1, (first[0] + first[1]) / 2} {
		alive := time.Now()
		l := w.start(fmt.Sprintf("%s=%d", processBytes, at), processEarly+"=yes")
		w.killedBySystem(l)
		w.died("at the start", alive)
	}
	for point, most := range map[string]int{beforeKey: 5, afterDenied: 2, afterRecord: 3} {
		for nth := range most {
			l := w.start(processPoint+"="+point, fmt.Sprintf("%s=%d", processNth, nth+1))
			alive := serve()
			l.killed(t)
			w.died(point, alive)
		}
	}
	w.finish()
	t.Logf("%d lines", len(ends))
}

// TestAuditKilledAtRandom kills sidecars that many callers call, at any moment,
// and when a file is full.
func TestAuditKilledAtRandom(t *testing.T) {
	t.Parallel()
	const kills, callers = 40, 12
	w := newWitnessed(t, "interval: 1s, checkpoint_interval: 100ms, segment_bytes: 1MiB")
	for i := range kills {
		l := w.start()
		var group sync.WaitGroup
		var calls atomic.Int64
		for range callers {
			rpc := keysidecarv1.NewSealServiceClient(connect(t, w.socket()))
			group.Go(func() {
				for w.round(rpc) {
					calls.Add(1)
				}
			})
		}
		point, goal := "at any moment", int64(rand.IntN(100))
		await(t, "calls", func() bool { return calls.Load() >= goal })
		if i%20 == 19 {
			point = "at a new file"
			await(t, "a second file", func() bool { return !strings.HasSuffix(must(newestFile(w.logs)), ".000000000000.jsonl") })
		}
		alive := time.Now()
		l.kill(t)
		group.Wait()
		w.died(point, alive)
	}
	w.finish()
}
