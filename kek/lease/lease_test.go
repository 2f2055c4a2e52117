package lease_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/kek/lease"
)

var (
	errDisabled  = errors.New("disabled")
	errForbidden = errors.New("forbidden")
	errSilent    = errors.New("time-out")
)

const length = 300 * time.Second

// clock is both clocks of a test.
type clock struct{ lease.Instant }

func (c *clock) pass(d time.Duration) { c.Boot, c.Wall = c.Boot+d, c.Wall+d }

func newLease() (*lease.Lease, *clock) {
	return lease.New(&lease.Config{Lease: length, Random: func() float64 { return 0 }}), &clock{lease.Instant{Boot: time.Hour, Wall: 1e6 * time.Hour}}
}

// proven returns a lease whose KEK has said yes just now.
func proven() (*lease.Lease, *clock) {
	l, c := newLease()
	l.Begin(c.Instant)
	l.Yes(c.Instant)
	return l, c
}

func check(t *testing.T, l *lease.Lease, c *clock, grace time.Duration, want lease.Verdict, cause error, state lease.State) {
	t.Helper()
	got, err := l.Check(c.Instant, grace)
	if got != want || !errors.Is(err, cause) || l.Standing().State != state {
		t.Fatalf("%v with grace %v: verdict %d because of %v, state %v; want %d because of %v, %v",
			c.Boot, grace, got, err, l.Standing().State, want, cause, state)
	}
}

func seconds(all ...int) []time.Duration {
	var out []time.Duration
	for _, n := range all {
		out = append(out, time.Duration(n)*time.Second)
	}
	return out
}

// ask asks after d, and tells what came of it at once.
func ask(t *testing.T, l *lease.Lease, c *clock, d time.Duration, answer func(now lease.Instant)) {
	t.Helper()
	c.pass(d)
	if !l.Begin(c.Instant) || l.Begin(c.Instant) {
		t.Fatal("not exactly one may ask")
	}
	answer(c.Instant)
}

// due returns how long it is to the next attempt, -1 if there is none.
func due(l *lease.Lease, c *clock) time.Duration {
	at, ok := l.Next()
	if !ok {
		return -1
	}
	return at - c.Boot
}

func wantDue(t *testing.T, l *lease.Lease, c *clock, want time.Duration) {
	t.Helper()
	if got := due(l, c); got != want {
		t.Fatalf("next attempt in %v, want %v", got, want)
	}
}

func TestFreshIsRenewedOnUse(t *testing.T) {
	l, c := newLease()
	check(t, l, c, 0, lease.Ask, nil, lease.Unproven)
	l.Begin(c.Instant)
	start := c.Instant
	c.pass(3 * time.Second)
	l.Yes(start)
	check(t, l, c, 0, lease.Serve, nil, lease.Fresh)
	wantDue(t, l, c, -1)
	c.pass(length/2 - 3*time.Second - 1)
	check(t, l, c, 0, lease.Serve, nil, lease.Fresh)
	c.pass(1)
	check(t, l, c, 0, lease.ServeAndAsk, nil, lease.Fresh)
	c.pass(length/2 - 1)
	check(t, l, c, 0, lease.ServeAndAsk, nil, lease.Fresh)
	c.pass(1) // counted from the start of the request
	check(t, l, c, time.Hour, lease.Ask, nil, lease.Fresh)
	if !l.Begin(c.Instant) {
		t.Fatal("nobody may ask")
	}
	check(t, l, c, time.Hour, lease.Ask, nil, lease.Renewing)
}

func TestOutage(t *testing.T) {
	l, c := proven()
	silence := func(now lease.Instant) { l.Silence(now, errSilent) }
	ask(t, l, c, length/2, silence)
	for _, wait := range seconds(2, 4, 8, 15, 15, 15, 15, 15, 15, 15, 15) {
		check(t, l, c, 0, lease.Serve, errSilent, lease.Renewing)
		wantDue(t, l, c, wait)
		ask(t, l, c, wait, silence)
	}
	c.pass(length) // nobody asked meanwhile: the machine did nothing
	check(t, l, c, 0, lease.Refuse, errSilent, lease.Renewing)
	check(t, l, c, time.Hour, lease.Serve, errSilent, lease.Renewing)
	ask(t, l, c, 0, silence)
	for _, wait := range seconds(5, 10, 20, 30, 30) {
		check(t, l, c, time.Hour, lease.Serve, errSilent, lease.Grace)
		wantDue(t, l, c, wait)
		ask(t, l, c, wait, silence)
	}
	c.pass(time.Hour)
	check(t, l, c, time.Hour, lease.Refuse, errSilent, lease.Grace)
	if _, err := l.Check(c.Instant, time.Hour); !strings.Contains(err.Error(), "outage_grace 1h0m0s") {
		t.Errorf("refused because of %v", err)
	}
	check(t, l, c, 24*time.Hour, lease.Serve, errSilent, lease.Grace)
	ask(t, l, c, 0, l.Yes)
	check(t, l, c, 0, lease.Serve, nil, lease.Fresh)
}

func TestRefusalFences(t *testing.T) {
	l, c := proven()
	ask(t, l, c, time.Second, func(now lease.Instant) { l.No(now, errDisabled) })
	check(t, l, c, time.Hour, lease.Refuse, errDisabled, lease.Fenced)
	for _, wait := range seconds(15, 30, 60, 60) {
		wantDue(t, l, c, wait)
		ask(t, l, c, wait, func(now lease.Instant) { l.Silence(now, errSilent) })
		check(t, l, c, time.Hour, lease.Refuse, errDisabled, lease.Fenced)
	}
	if at, ok := l.WipeAt(); !ok || at != time.Hour+61*time.Second {
		t.Errorf("wiped at %v, %v", at, ok)
	}
	l.Forget(c.Instant)
	check(t, l, c, time.Hour, lease.Refuse, errDisabled, lease.Unproven)
	c.pass(5 * time.Second)
	check(t, l, c, time.Hour, lease.Ask, errDisabled, lease.Unproven)
}

// A flap of the credential's role, shorter than the three further attempts,
// harms nobody; a longer one fences after 17 s.
func TestForbidden(t *testing.T) {
	maybe := func(l *lease.Lease) func(lease.Instant) {
		return func(now lease.Instant) { l.Maybe(now, errForbidden) }
	}
	l, c := proven()
	ask(t, l, c, length/2, maybe(l))
	for _, wait := range seconds(2, 5, 10) {
		check(t, l, c, 0, lease.Serve, errForbidden, lease.Suspect)
		wantDue(t, l, c, wait)
		ask(t, l, c, wait, maybe(l))
	}
	check(t, l, c, time.Hour, lease.Refuse, errForbidden, lease.Fenced)

	l, c = proven()
	ask(t, l, c, length/2, maybe(l))
	ask(t, l, c, 2*time.Second, maybe(l))
	ask(t, l, c, 5*time.Second, func(now lease.Instant) { l.Silence(now, errSilent) })
	c.pass(length)
	check(t, l, c, time.Hour, lease.Refuse, errForbidden, lease.Suspect) // a cut does not undo it
	ask(t, l, c, 10*time.Second, l.Yes)
	check(t, l, c, 0, lease.Serve, nil, lease.Fresh)

	l, c = newLease()
	for _, wait := range seconds(5, 10, 20, 40, 60, 60) {
		ask(t, l, c, 0, maybe(l))
		check(t, l, c, time.Hour, lease.Refuse, errForbidden, lease.Unproven)
		c.pass(wait)
		check(t, l, c, time.Hour, lease.Ask, errForbidden, lease.Unproven)
	}
}

// A request that was sent before a refusal does not undo it, whenever its answer
// comes; and an old yes does not shorten a newer one.
func TestLateAnswers(t *testing.T) {
	l, c := proven()
	start := c.Instant
	c.pass(time.Second)
	l.Begin(c.Instant)
	l.No(c.Instant, errDisabled)
	l.Yes(start)
	check(t, l, c, 0, lease.Refuse, errDisabled, lease.Fenced)
	ask(t, l, c, 15*time.Second, l.Yes)
	check(t, l, c, 0, lease.Serve, nil, lease.Fresh)
	l.Yes(start)
	if got := l.Standing().Proved; got != c.Instant {
		t.Errorf("proved at %v, want %v", got, c.Instant)
	}
}

// A machine that sleeps, or whose clock is set, gains nothing.
func TestClocks(t *testing.T) {
	l, c := proven()
	c.Wall -= 24 * time.Hour
	c.Boot += length
	check(t, l, c, 0, lease.Ask, nil, lease.Fresh)
	l, c = proven()
	c.Wall += length // the machine slept, and this clock did not count it
	check(t, l, c, 0, lease.Ask, nil, lease.Fresh)
}

// Whatever happens in which order: nothing is served longer after the last yes
// than lease and grace, nor after a refusal that no later request undid.
func TestBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := lease.New(&lease.Config{Lease: length, Random: func() float64 { return rapid.Float64Range(0, 1).Draw(t, "random") }})
		c := &clock{lease.Instant{Boot: time.Hour, Wall: time.Hour}}
		var yes, no time.Duration = -1, -1 // by Boot: start of the newest yes, the newest refusal that fences
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			c.pass(rapid.SampledFrom([]time.Duration{0, time.Second, 10 * time.Second, length / 2, length, 2 * length}).Draw(t, "passes"))
			start := c.Instant
			l.Begin(start)
			c.pass(rapid.SampledFrom([]time.Duration{0, time.Second, time.Minute}).Draw(t, "takes"))
			switch rapid.SampledFrom([]string{"yes", "no", "maybe", "silence", "forget", "nothing"}).Draw(t, "answer") {
			case "yes":
				l.Yes(start)
				yes = max(yes, start.Boot)
			case "no":
				l.No(c.Instant, errDisabled)
				no = c.Boot
			case "maybe":
				l.Maybe(c.Instant, errForbidden)
			case "silence":
				l.Silence(c.Instant, errSilent)
			case "forget":
				l.Forget(c.Instant)
			}
			for _, grace := range []time.Duration{0, time.Hour} {
				verdict, _ := l.Check(c.Instant, grace)
				if verdict != lease.Serve && verdict != lease.ServeAndAsk {
					continue
				}
				if age := c.Boot - yes; yes < 0 || age >= length+grace {
					t.Fatalf("serves with grace %v, %v after the last yes, in state %v", grace, age, l.Standing().State)
				}
				if no > yes {
					t.Fatalf("serves after a refusal at %v, last yes sent at %v, in state %v", no, yes, l.Standing().State)
				}
			}
		}
	})
}

func TestStrings(t *testing.T) {
	if got := fmt.Sprint(lease.Unproven, lease.Fresh, lease.Renewing, lease.Suspect, lease.Grace, lease.Fenced, lease.State(9)); got != "unproven fresh renewing suspect grace fenced state(9)" {
		t.Error(got)
	}
}

func TestCheckDoesNotAllocate(t *testing.T) {
	l, c := proven()
	if n := testing.AllocsPerRun(100, func() { _, _ = l.Check(c.Instant, 0) }); n != 0 {
		t.Errorf("Check allocates %v times", n)
	}
}
