package dek

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/keysidecar/keysidecar/kek"
	keklease "github.com/keysidecar/keysidecar/kek/lease"
)

const (
	// leaseTick is how often leases are looked at that want to be asked about.
	leaseTick = 500 * time.Millisecond
	// leaseWait is how long an operation waits for a lease to be renewed while
	// its tenant tolerates an outage.
	leaseWait = 250 * time.Millisecond
	// inFlight is how long an operation that was permitted may take.
	inFlight = 30 * time.Second
	// maxGrace is the longest outage that any tenant tolerates.
	maxGrace = 24 * time.Hour
)

// probe is a DEK whose unwrapping shows that a KEK version still says yes.
type probe struct {
	key       cacheKey
	candidate Candidate
}

// permit returns nil if what l is for may be used now, for a tenant that
// tolerates an outage of length grace. It may wait for the vault to say so.
func (s *Source) permit(ctx context.Context, l *lease, grace time.Duration) error {
	for range 2 { // an attempt that was under way may have begun too early
		verdict, cause := l.state.Check(s.clock.now(), grace)
		switch verdict {
		case keklease.Serve:
			return nil
		case keklease.ServeAndAsk:
			s.attempt(l)
			return nil
		case keklease.Refuse:
			return fmt.Errorf("using a DEK: %w", cause)
		}
		if done, err := s.wait(ctx, l, grace); done || err != nil {
			return err
		}
	}
	if verdict, cause := l.state.Check(s.clock.now(), grace); verdict == keklease.Refuse || verdict == keklease.Ask {
		return fmt.Errorf("renewing the lease of KEK %s version %s: %w", l.key.kek.Ref, l.key.version, orUnreachable(cause, l))
	}
	return nil
}

// wait waits for an attempt. A vault that does not answer soon is one that does
// not answer: done says that the DEK may be used meanwhile.
func (s *Source) wait(ctx context.Context, l *lease, grace time.Duration) (done bool, err error) {
	timer := time.NewTimer(leaseWait)
	defer timer.Stop()
	attempt := s.attempt(l)
	for {
		select {
		case <-attempt:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		case <-timer.C:
			now := s.clock.now()
			verdict, cause := l.state.Check(now, grace)
			if verdict == keklease.Refuse {
				return false, fmt.Errorf("using a DEK: %w", cause)
			}
			if verdict != keklease.Ask || now.Since(l.state.Standing().Proved) < s.cfg.Lease+grace {
				return true, nil
			}
		}
	}
}

func orUnreachable(cause error, l *lease) error {
	if cause != nil {
		return cause
	}
	return &kek.Error{Reason: kek.Unreachable, Op: "unwrap", Ref: l.key.kek.Ref, Vault: l.key.kek.Vault, Version: l.key.version}
}

// attempt has the vault asked, unless it is being asked already, and returns what
// is closed when it has answered or not.
func (s *Source) attempt(l *lease) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.trying != nil {
		return l.trying
	}
	done := make(chan struct{})
	l.trying = done
	s.background.Go(func() {
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.trying = nil
			close(done)
		}()
		s.try(l)
	})
	return done
}

// try unwraps a DEK again that was unwrapped under l.
func (s *Source) try(l *lease) {
	p, start := l.probe.Load(), s.clock.now()
	if p == nil || !l.state.Begin(start) {
		return
	}
	before := l.state.Standing().State
	ctx, cancel := context.WithTimeout(s.life, s.cfg.LoadTimeout)
	defer cancel()
	err := s.prove(ctx, p)
	now := s.clock.now()
	switch reason := kek.ReasonOf(err); {
	case err == nil:
		l.state.Yes(start)
	case reason == kek.Disabled || reason == kek.NotFound:
		l.state.No(now, err)
	case reason == kek.Forbidden || reason == kek.Unusable:
		l.state.Maybe(now, err)
	default:
		l.state.Silence(now, err)
	}
	s.tellLease(ctx, l, before, err)
}

// prove unwraps a DEK that was unwrapped before, and compares its ID.
func (s *Source) prove(ctx context.Context, p *probe) error {
	dek, info, err := s.unwrapOnce(ctx, p.key, p.candidate)
	if err != nil {
		return err
	}
	defer dek.Wipe()
	kind := Renewed
	if !matches(dek, p.key) {
		kind, err = Rejected, ErrMismatch
	}
	// A renewal takes effect whether or not it can be recorded: what it allows
	// is allowed already.
	_ = s.cfg.Record(ctx, Event{Kind: kind, Tenant: p.key.tenant, Info: info})
	return err
}

// tellLease logs a change of state, and drops what a fenced lease was for.
func (s *Source) tellLease(ctx context.Context, l *lease, before keklease.State, cause error) {
	after := l.state.Standing().State
	if after == keklease.Fenced {
		if s.leases.fenceOne(l) {
			s.dropFenced(ctx, Info{KEKRef: l.key.kek.Ref, KEKVersion: l.key.version, Region: l.key.kek.Region}, l.key.kek.Vault, cause)
		}
		return
	}
	if after != keklease.Fresh {
		s.wakeLeases()
	}
	if after == before || after == keklease.Fresh && before == keklease.Renewing {
		return
	}
	s.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "KEK lease", slog.String("kek", l.key.kek.Ref), slog.String("vault", l.key.kek.Vault),
		slog.String("version", l.key.version.String()), slog.String("state", after.String()), slog.Any("cause", cause))
}

// wakeLeases has keepLeases look: a lease may have to be asked about though
// nobody uses it.
func (s *Source) wakeLeases() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// keepLeases asks about the leases whose time has come, until ctx ends. As long as
// all are fresh it does nothing.
func (s *Source) keepLeases(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		for s.askDue(ctx) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(leaseTick):
			}
		}
	}
}

// askDue reports whether there is a lease to be asked about, now or later.
func (s *Source) askDue(ctx context.Context) (wanted bool) {
	now := s.clock.now()
	for _, l := range s.leases.all() {
		standing := l.state.Standing()
		if standing.State == keklease.Grace && now.Since(standing.Proved) >= s.cfg.Lease+maxGrace {
			l.state.No(now, standing.Cause)
			s.tellLease(ctx, l, standing.State, standing.Cause)
			continue
		}
		at, ok := l.state.Next()
		if wanted = wanted || ok; ok && now.Boot >= at {
			s.attempt(l)
		}
	}
	return wanted
}
