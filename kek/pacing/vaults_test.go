package pacing_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/pacing"
)

func TestConfig(t *testing.T) {
	for want, cfg := range map[string]pacing.Config{
		"quota of -1":      {Quota: -1},
		"quota of NaN":     {Quota: math.NaN()},
		"quota of +Inf":    {Quota: math.Inf(1)},
		"fleet size -1":    {FleetSize: -1},
		"queue of -1":      {Queue: -1},
		"-1 vaults":        {Vaults: -1},
		"call time -1ns":   {CallTime: -1},
		"quota of -0.0001": {Quota: -1e-4, FleetSize: 1},
	} {
		if p, err := pacing.New(cfg); p != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New(%+v) = %v, %v, want %q", cfg, p, err, want)
		}
	}
	if _, err := pacing.New(pacing.Config{}); err != nil {
		t.Errorf("zero config: %v", err)
	}
}

// names returns the vaults that are remembered.
func names(p *pacing.Pacer) (names []string) {
	for _, v := range p.Stats().Vaults {
		names = append(names, v.Vault)
	}
	return names
}

func ask(t *testing.T, p *pacing.Pacer, vault string) error {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), time.Nanosecond)
	defer stop()
	return p.Wait(ctx, vault)
}

func TestVaultsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(t, pacing.Config{Vaults: 4})
		for _, v := range []string{"a", "b", "c", "d", "a"} {
			if err := ask(t, p, v); err != nil {
				t.Fatal(err)
			}
		}
		p.Answered("unknown", false, 0) // nothing to remember
		<-time.After(time.Minute)
		ask(t, p, "e") // b was asked longest ago
		if diff := cmp.Diff([]string{"a", "c", "d", "e"}, names(p)); diff != "" {
			t.Errorf("remembered (-want +got):\n%s", diff)
		}
		for i := range 100 { // invented, and in use: none is at ease
			ask(t, p, fmt.Sprint(i))
		}
		if n := len(names(p)); n != 4 {
			t.Errorf("%d vaults are remembered", n)
		}
	})
}

// Who brings new vaults does not lift the brake on another.
func TestBrakedVaultsAreKept(t *testing.T) {
	for name, brake := range map[string]func(p *pacing.Pacer){
		"slow":    func(p *pacing.Pacer) { p.Answered(kv, true, 0); <-time.After(time.Hour) },
		"stopped": func(p *pacing.Pacer) { <-time.After(time.Hour); p.Answered(kv, false, time.Second) },
		"used up": func(p *pacing.Pacer) { <-time.After(time.Hour); p.Charge(kv, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPacer(t, pacing.Config{Vaults: 2, FleetSize: 1000})
				ask(t, p, kv)
				ask(t, p, "idle")
				brake(p)
				p.Answered("idle", false, time.Nanosecond) // it is the newer one, and at ease again
				<-time.After(time.Millisecond)
				ask(t, p, "new")
				if diff := cmp.Diff([]string{kv, "new"}, names(p)); diff != "" {
					t.Errorf("remembered (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestNoRoomForVaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(t, pacing.Config{Vaults: 2})
		ctx, stop := context.WithCancel(t.Context())
		var calls sync.WaitGroup
		for _, v := range []string{"a", "b"} {
			p.Answered(v, false, 5*time.Second)
			calls.Go(func() { p.Wait(ctx, v) })
		}
		synctest.Wait()
		err := ask(t, p, "c")
		if e, ok := errors.AsType[*kek.Error](err); !ok || !errors.Is(err, pacing.ErrPaced) || e.Vault != "c" || e.RetryAfter != time.Second {
			t.Errorf("a third vault: %v", err)
		}
		p.Answered("c", true, time.Second) // no room to remember it
		stop()
		calls.Wait()
		if err := ask(t, p, "c"); err != nil {
			t.Errorf("once nobody waits for one: %v", err)
		}
		if n := len(names(p)); n != 2 {
			t.Errorf("%d vaults are remembered", n)
		}
	})
}

// What Wait says of a context that ended before is no answer of anybody.
func TestEndedContext(t *testing.T) {
	p := newPacer(t, pacing.Config{})
	ctx, stop := context.WithCancel(t.Context())
	stop()
	err := p.Wait(ctx, kv)
	if e, ok := errors.AsType[*kek.Error](err); !ok || e.Reason != kek.Unreachable || !errors.Is(err, context.Canceled) || errors.Is(err, pacing.ErrPaced) {
		t.Errorf("Wait = %v", err)
	}
	if n := len(names(p)); n != 0 {
		t.Errorf("%d vaults are remembered", n)
	}
}

func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{})
		s.drain()
		s.call("", kek.UnsealMiss, "a", 0)
		s.call("", kek.UnsealMiss, "b", 0)
		s.call("", kek.Poll, "", time.Second)
		leave := s.call("", kek.Job, "", 0)
		s.until(750 * time.Millisecond)
		want := pacing.Stats{
			Counts: pacing.Counts{
				Granted: [kek.Job + 1]uint64{kek.Renewal: 10, kek.UnsealMiss: 1},
				Refused: [kek.Job + 1]uint64{kek.Poll: 1},
				Waited:  [kek.Job + 1]time.Duration{kek.UnsealMiss: 500 * time.Millisecond},
			},
			Vaults: []pacing.VaultStats{{Vault: kv, Rate: 2, Waiting: [kek.Job + 1]int{kek.UnsealMiss: 1, kek.Job: 1}}},
		}
		if diff := cmp.Diff(want, s.p.Stats()); diff != "" {
			t.Errorf("stats (-want +got):\n%s", diff)
		}
		leave()
		s.calls.Wait()
		if n := s.p.Stats().Refused[kek.Job]; n != 1 {
			t.Errorf("%d jobs refused, want the one that left", n)
		}
	})
}

// A tenant that was refused is not overtaken by whoever happens to come when
// there is room.
func TestRefusedTenantKeepsItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{CallTime: time.Nanosecond})
		s.drain()
		s.call("a", kek.UnsealMiss, "a", 2*time.Second)
		s.call("b", kek.UnsealMiss, "b", 2*time.Second)
		s.call("c", kek.UnsealMiss, "c", 1200*time.Millisecond) // told 1.5 s
		s.until(100 * time.Millisecond)
		s.call("d", kek.UnsealMiss, "d", 1200*time.Millisecond) // told the turn behind c, at 2 s
		s.until(600 * time.Millisecond)
		s.call("e", kek.UnsealMiss, "e", 1200*time.Millisecond) // would have the turn of c, at 1.5 s
		s.call("f", kek.UnsealMiss, "f", 3*time.Second)         // behind all of them, at 3 s
		s.until(1400 * time.Millisecond)
		s.call("d again", kek.UnsealMiss, "d", 3*time.Second) // before f, behind c
		s.call("c again", kek.UnsealMiss, "c", 3*time.Second)
		want(t, s.ended(), "c@0s refused 1.5s", "d@100ms refused 1.9s", "a@500ms", "e@600ms refused 1.9s", "b@1s", "c again@1.5s", "d again@2s", "f@2.5s")
	})
}

// Who does not come back is not waited for.
func TestTicketsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{CallTime: time.Nanosecond, Queue: 2})
		s.drain()
		for i := range 8 { // two places are kept
			s.call(fmt.Sprint(i), kek.UnsealMiss, fmt.Sprint(i), 100*time.Millisecond)
		}
		s.call("first", kek.UnsealMiss, "a", 0)
		s.until(3600 * time.Millisecond) // they were to be back after 1.5 s
		s.take(6)
		s.call("patient", kek.UnsealMiss, "b", 600*time.Millisecond)
		want(t, s.ended(), "0@0s refused 500ms", "1@0s refused 1s", "2@0s refused 1.5s", "3@0s refused 1.5s", "4@0s refused 1.5s",
			"5@0s refused 1.5s", "6@0s refused 1.5s", "7@0s refused 1.5s", "first@500ms", "patient@4s")
	})
}

func TestJobsAreToldTheirTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{})
		for _, name := range []string{"1", "2", "3", "4"} {
			s.call(name, kek.Job, name, time.Second)
		}
		want(t, s.ended(), "1@0s", "2@0s", "3@0s refused 2.5s", "4@0s refused 5s")
	})
}

// A place is kept for one turn, of one priority, up to 30 s after it was to be.
func TestPlaceIsKept(t *testing.T) {
	begin := func(t *testing.T) *site {
		s := newSite(t, pacing.Config{})
		s.drain()
		s.call("refused", kek.SealMiss, "a", 100*time.Millisecond) // told 500 ms
		return s
	}
	rivals := func(s *site, at time.Duration, class kek.Priority) []string {
		s.until(at)
		s.drain()
		s.call("b", class, "b", 0)
		s.until(at + 100*time.Millisecond)
		s.call("a", class, "a", 0)
		ended := s.ended()[1:]
		for i, end := range ended {
			ended[i] = end[:1]
		}
		return ended
	}
	for name, x := range map[string]struct {
		before func(s *site)
		at     time.Duration
		class  kek.Priority
		want   []string
	}{
		"in time":          {nil, 30 * time.Second, kek.SealMiss, []string{"a", "b"}},
		"too late":         {nil, 31 * time.Second, kek.SealMiss, []string{"b", "a"}},
		"another priority": {nil, 10 * time.Second, kek.UnsealMiss, []string{"b", "a"}},
		"second turn": {func(s *site) {
			s.until(time.Second)
			s.call("refused, but now", kek.SealMiss, "a", time.Second)
			s.got = s.got[:1]
		}, 10 * time.Second, kek.SealMiss, []string{"b", "a"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := begin(t)
				if x.before != nil {
					x.before(s)
				}
				want(t, rivals(s, x.at, x.class), x.want...)
			})
		})
	}
}
