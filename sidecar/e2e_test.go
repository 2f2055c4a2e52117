package sidecar_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/keysidecar/keysidecar/client"
	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/kek/devvault"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sidecar"
)

// holdUnwrapped returns a Record that keeps every DEK that a vault has
// unwrapped out of the cache, and its callers waiting, until gate is closed.
func holdUnwrapped(gate <-chan struct{}) func(context.Context, dek.Event) error {
	return func(ctx context.Context, e dek.Event) error {
		if e.Kind != dek.Unwrapped {
			return nil
		}
		select {
		case <-gate:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// firstBlock returns the first key block of a bundle, and its envelope.
func firstBlock(t *testing.T, sealed []byte) (envelope.Block, []byte) {
	t.Helper()
	parsed, err := envelope.Parse(sealed)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Blocks()[0], parsed.Envelope
}

// bundle makes a bundle of one block.
func bundle(t *testing.T, block envelope.Block, env []byte) []byte {
	t.Helper()
	raw, err := block.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	out, err := envelope.AppendBundleHeader(nil, raw)
	if err != nil {
		t.Fatal(err)
	}
	return append(out, env...)
}

// reblock returns sealed with its block changed.
func reblock(t *testing.T, sealed []byte, change func(*envelope.Block)) []byte {
	t.Helper()
	block, env := firstBlock(t, sealed)
	block.Wrapped = bytes.Clone(block.Wrapped)
	change(&block)
	return bundle(t, block, env)
}

const (
	honest, connections = 200, 8
	forgeries, repeats  = 5, 4
)

func TestOneUnwrapForAllCallers(t *testing.T) {
	site := newSite(t, "acme")
	sealed := site.start(t, settings{}).seal(t, "acme", "payload").Bytes
	gate := make(chan struct{})
	cold := site.start(t, settings{unknown: "1m", Options: sidecar.Options{Record: holdUnwrapped(gate)}})
	before := site.Counters().Key("acme", kekName)

	var group, forgers sync.WaitGroup
	forge := func(i int) {
		forged := reblock(t, sealed, func(b *envelope.Block) { b.Wrapped[10+i] ^= 1 })
		for range repeats {
			if _, err := cold.client.Unseal(t.Context(), "acme", forged, nil); client.ReasonOf(err) != "AUTHENTICATION_FAILED" {
				t.Errorf("forgery %d: %v, want AUTHENTICATION_FAILED", i, err)
			}
		}
	}
	// A forger is there before anybody else, and others come while the honest
	// callers wait.
	site.inject(t, devvault.Fault{Kind: devvault.FaultDelay, Op: devvault.OpUnwrap, Delay: 200 * time.Millisecond, Count: 1})
	forgers.Go(func() { forge(0) })
	await(t, "the first forger is at the vault", func() bool { return cold.Stats().Keys.InFlight == 1 })

	// The caller for whom the unwrap is made gives up, and one who has joined.
	ctx, cancel := context.WithCancel(t.Context())
	quitter := make(chan error)
	go func() {
		_, err := cold.client.Unseal(ctx, "acme", sealed, nil)
		quitter <- err
	}()
	await(t, "the DEK has been unwrapped and is held", func() bool {
		return site.Counters().Key("acme", kekName).Unwrapped-before.Unwrapped == 1
	})
	cancel()
	if err := <-quitter; !errors.Is(err, context.Canceled) {
		t.Errorf("caller who gave up: %v, want canceled", err)
	}
	short, cancelShort := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancelShort()
	if _, err := cold.client.Unseal(short, "acme", sealed, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("caller with a short deadline: %v, want deadline exceeded", err)
	}

	waiting := cold.Stats().Keys.Misses
	var opened atomic.Int32
	for range connections {
		c := cold.dial(t)
		for range honest / connections {
			group.Go(func() {
				switch got, err := c.Unseal(t.Context(), "acme", sealed, nil); {
				case err != nil:
					t.Errorf("honest caller: %v", err)
				case string(got.Plaintext) == "payload":
					opened.Add(1)
				}
			})
		}
	}
	for i := range forgeries - 1 {
		forgers.Go(func() { forge(1 + i) })
	}
	forgers.Wait() // who comes when the DEK is warm is not refused
	// Each call looks into the cache once, and once more before it waits.
	await(t, "everybody waits", func() bool {
		return cold.Stats().Keys.Misses-waiting >= 2*honest && cold.Stats().Keys.InFlight == 1
	})
	close(gate)
	group.Wait()

	after := site.Counters().Key("acme", kekName)
	want := devvault.KeyCounters{Unwraps: 1 + forgeries, Unwrapped: 1}
	got := devvault.KeyCounters{Wraps: after.Wraps - before.Wraps, Unwraps: after.Unwraps - before.Unwraps, Unwrapped: after.Unwrapped - before.Unwrapped}
	if diff := cmp.Diff(want, got); diff != "" || opened.Load() != honest {
		t.Errorf("%d honest callers opened, want %d; the vault's counters (-want +got):\n%s", opened.Load(), honest, diff)
	}
	t.Logf("%d callers on %d connections opened: %d unwrap; %d calls with %d forged blocks: %d more",
		honest, connections, got.Unwrapped, forgeries*repeats, forgeries, got.Unwraps-got.Unwrapped)
}

// Two tenants share a KEK, which is rotated while the sidecar runs.
func TestRotationWhileRunning(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	first := site.createKEK(t, "shared")
	shared := settings{keks: []string{site.kek("shared", "shared", "RSA-OAEP-256")}, tenants: []string{`{prefix: "", kek: shared}`}, poll: "1s"}
	n := site.start(t, shared)
	old := n.seal(t, "acme", "before")
	if old.KeyInfo.KEKVersion != first {
		t.Fatalf("sealed under %s, want %s", old.KeyInfo.KEKVersion, first)
	}
	second, err := site.Rotate("shared", kekName)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	await(t, "a seal under the new version", func() bool { return n.seal(t, "acme", "between").KeyInfo.KEKVersion == second })
	took := time.Since(start)
	// Package dek holds the bound itself, with a clock of its own; the rest is
	// for this machine to be busy.
	if took > 3*time.Second {
		t.Errorf("followed after %s, with a poll interval of 1s", took)
	}
	t.Logf("new version in use %s after the rotation, poll interval 1s", took.Round(time.Millisecond))
	for _, tenant := range []string{"acme", "globex"} {
		if got := n.seal(t, tenant, "after").KeyInfo.KEKVersion; got != second {
			t.Errorf("%s: sealed under %s afterwards, want %s", tenant, got, second)
		}
	}
	for name, reader := range map[string]*node{"warm": n, "cold": site.start(t, shared)} {
		if got := reader.mustOpen(t, "acme", old.Bytes, "before"); got != old.KeyInfo {
			t.Errorf("%s: old data opened with %+v, want %+v", name, got, old.KeyInfo)
		}
	}
}

// The vault wraps under a version that it will not unwrap with; the sidecar
// does not, whatever it knew of the version.
func TestDisabledVersionIsNeverMintedUnder(t *testing.T) {
	site := newSite(t)
	first := site.createKEK(t, "shared")
	second := site.createKEK(t, "shared")
	shared := settings{
		keks: []string{site.kek("shared", "shared", "RSA-OAEP-256")}, tenants: []string{`{prefix: "", kek: shared}`},
		maxMessages: 4, // too few for a mint ahead of time
	}
	n := site.start(t, shared)
	sealed := make(map[string]client.Sealed) // by tenant
	for range shared.maxMessages {
		sealed["aged"] = n.seal(t, "aged", "data")
	}
	under := sealed["aged"]
	if under.KeyInfo.KEKVersion != second {
		t.Fatalf("sealed under %s, want the newest version %s", under.KeyInfo.KEKVersion, second)
	}

	enable(t, site, second, false)
	sealed["new"] = n.seal(t, "new", "data")   // on what was known of the second version
	sealed["aged"] = n.seal(t, "aged", "data") // its DEK is used up
	third := site.createKEK(t, "shared")
	enable(t, site, third, false)
	sealed["newer"] = n.seal(t, "newer", "data") // the third version was never seen
	sealed["first"] = site.start(t, shared).seal(t, "first", "data")
	cold := site.start(t, shared)
	for tenant, s := range sealed {
		if s.KeyInfo.KEKVersion != first {
			t.Errorf("%s: sealed under %s, want the only enabled version %s", tenant, s.KeyInfo.KEKVersion, first)
		}
		cold.mustOpen(t, tenant, s.Bytes, "data")
	}

	_, err := cold.client.Unseal(t.Context(), "aged", under.Bytes, nil)
	if client.ReasonOf(err) != "KEK_DISABLED" {
		t.Errorf("data under the disabled version: %v, want KEK_DISABLED", err)
	}
	enable(t, site, first, false)
	if _, err := cold.client.Seal(t.Context(), "newest", nil, nil); client.ReasonOf(err) != "KEK_DISABLED" {
		t.Errorf("mint with every version disabled: %v, want KEK_DISABLED", err)
	}
	enable(t, site, second, true)
	await(t, "data under the version that is enabled again opens", func() bool {
		got, err := cold.client.Unseal(t.Context(), "aged", under.Bytes, nil)
		return err == nil && string(got.Plaintext) == "data"
	})
}

func enable(t *testing.T, s *site, version string, enabled bool) {
	t.Helper()
	if err := s.SetEnabled("shared", kekName, version, enabled); err != nil {
		t.Fatal(err)
	}
}

func TestDrain(t *testing.T) {
	site := newSite(t, "acme")
	sealed := site.start(t, settings{}).seal(t, "acme", "payload").Bytes
	gate := make(chan struct{})
	n := site.start(t, settings{Options: sidecar.Options{Record: holdUnwrapped(gate)}})
	type answer struct {
		got client.Unsealed
		err error
	}
	inFlight := make(chan answer)
	go func() {
		got, err := n.client.Unseal(t.Context(), "acme", sealed, nil)
		inFlight <- answer{got, err}
	}()
	await(t, "a call waits for its key", func() bool { return n.Stats().Keys.InFlight == 1 })
	n.stop()
	await(t, "new calls are refused", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := n.rpc.Unseal(ctx, &keysidecarv1.UnsealRequest{Tenant: "..", Sealed: sealed})
		return codeOf(err) == codes.Unavailable
	})
	select {
	case <-n.done:
		t.Error("Run returned with a call under way")
	default:
	}
	close(gate)
	if a := <-inFlight; a.err != nil || string(a.got.Plaintext) != "payload" {
		t.Errorf("call in flight: %q, %v", a.got.Plaintext, a.err)
	}
	<-n.done
	var e *client.Error
	if _, err := n.dial(t).Seal(t.Context(), "acme", nil, nil); !errors.As(err, &e) || e.Code != codes.Unavailable {
		t.Errorf("call after the drain: %v, want UNAVAILABLE", err)
	}
}
