// Package kektest tests implementations of kek.Wrapper and kek.Signer, and has
// one in memory for the tests of packages that need a KEK.
package kektest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/kek"
)

// Owner acts as the owner of the key under test, past what is tested. All fields
// but Plant are required. The functions fail t when they cannot act.
type Owner struct {
	// Rotate adds a new enabled version, newer than all others.
	Rotate func(t testing.TB) kek.Version
	// Disable and Enable switch one version.
	Disable func(t testing.TB, v kek.Version)
	Enable  func(t testing.TB, v kek.Version)
	// Plant wraps arbitrary bytes under v, 24 or 40 of them, as anybody with
	// an RSA public key can. Nil leaves out the test that needs it; RunSigner
	// needs none.
	Plant func(t testing.TB, v kek.Version, b []byte) []byte
}

// Prompt is how soon a call must return after its context ended.
const Prompt = 5 * time.Second

// Run tests the contract of kek.Wrapper. It calls open several times; each
// time open makes a key that nobody else uses, with one enabled version. The
// Wrapper may be the same each time. It makes about 100 calls.
func Run(t *testing.T, open func(t *testing.T) (kek.Wrapper, kek.Key, Owner)) {
	w, k, o := open(t)
	s := &suite{w: w, k: k, o: o, v: newest(t, w, k)}
	t.Run("round trip", s.roundTrip)
	t.Run("another version", s.anotherVersion)
	t.Run("absent version", s.absentVersion)
	t.Run("absent key", s.absentKey)
	t.Run("another algorithm", s.anotherAlg)
	t.Run("garbage", s.garbage)
	t.Run("another length", s.anotherLength)
	t.Run("bit flips", s.bitFlips)
	t.Run("ended context", s.endedContext)
	t.Run("concurrent use", s.concurrent)
	t.Run("arguments are not retained", s.arguments)
	t.Run("rotation", func(t *testing.T) {
		w, k, o := open(t)
		(&suite{w: w, k: k, o: o, v: newest(t, w, k)}).rotation(t)
	})
	t.Run("disabled", func(t *testing.T) {
		w, k, o := open(t)
		(&suite{w: w, k: k, o: o, v: newest(t, w, k)}).disabled(t)
	})
}

type suite struct {
	w kek.Wrapper
	k kek.Key
	o Owner
	v kek.Version // the newest version when the suite began
}

func (s *suite) roundTrip(t *testing.T) {
	dek := randomDEK()
	wrapped := s.wrap(t, s.v, dek)
	if bytes.Contains(wrapped, dek[:]) {
		t.Error("wrapped bytes hold the DEK in clear")
	}
	if n := len(wrapped); s.k.Alg == kek.A256KW && n != 40 || s.k.Alg == kek.RSAOAEP256 && n != 256 && n != 384 && n != 512 {
		t.Errorf("%s wrapped to %d bytes", s.k.Alg, n)
	}
	for range 2 {
		if got := s.unwrap(t, s.v, wrapped); got != *dek {
			t.Error("unwrapped DEK differs")
		}
	}
}

func (s *suite) anotherVersion(t *testing.T) {
	wrapped := s.wrap(t, s.v, randomDEK())
	other := s.o.Rotate(t)
	if other == s.v {
		t.Fatal("rotation kept the version")
	}
	s.refused(t, other, wrapped, kek.Rejected)
	s.unwrap(t, s.v, wrapped)
}

func (s *suite) absentVersion(t *testing.T) {
	wrapped := s.wrap(t, s.v, randomDEK())
	var absent kek.Version
	rand.Read(absent[:])
	s.refused(t, absent, wrapped, kek.NotFound)
	b, err := s.w.Wrap(t.Context(), s.k, absent, randomDEK())
	checkError(t, err, kek.NotFound, "wrap", s.k, absent)
	checkNil(t, b)
}

func (s *suite) absentKey(t *testing.T) {
	absent := s.k
	absent.Name += "-absent"
	v, err := s.w.Newest(t.Context(), absent)
	checkError(t, err, kek.NotFound, "newest", absent, kek.Version{})
	if !v.IsZero() {
		t.Error("version with an error")
	}
	wrapped := s.wrap(t, s.v, randomDEK())
	dek := randomDEK()
	err = s.w.Unwrap(t.Context(), absent, s.v, wrapped, dek)
	checkError(t, err, kek.NotFound, "unwrap", absent, s.v)
	checkZero(t, dek)
}

func (s *suite) anotherAlg(t *testing.T) {
	other := s.k
	other.Alg = kek.RSAOAEP256 + kek.A256KW - s.k.Alg
	_, err := s.w.Newest(t.Context(), other)
	checkError(t, err, kek.Unusable, "newest", other, kek.Version{})
}

func (s *suite) garbage(t *testing.T) {
	wrapped := s.wrap(t, s.v, randomDEK())
	random := make([]byte, len(wrapped))
	rand.Read(random)
	random[0] &= 0x7f // below any RSA modulus
	for _, bad := range [][]byte{
		nil, {}, {0}, random, make([]byte, len(wrapped)),
		wrapped[:len(wrapped)-1], wrapped[:len(wrapped)-8], wrapped[:len(wrapped)/2], wrapped[1:],
		append(bytes.Clone(wrapped), 0), bytes.Repeat(wrapped, 2), bytes.Repeat([]byte{0xff}, len(wrapped)),
	} {
		s.refused(t, s.v, bad, kek.Rejected)
	}
}

func (s *suite) anotherLength(t *testing.T) {
	if s.o.Plant == nil {
		return
	}
	for _, n := range []int{24, 40} {
		b := make([]byte, n)
		rand.Read(b)
		s.refused(t, s.v, s.o.Plant(t, s.v, b), kek.Rejected)
	}
}

func (s *suite) bitFlips(t *testing.T) {
	wrapped := s.wrap(t, s.v, randomDEK())
	for i := range 16 {
		bad := bytes.Clone(wrapped)
		bad[i*(len(bad)-1)/15] ^= 1 << (i % 8)
		s.refused(t, s.v, bad, kek.Rejected)
	}
	s.unwrap(t, s.v, wrapped)
}

func (s *suite) endedContext(t *testing.T) {
	wrapped := s.wrap(t, s.v, randomDEK())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.ended(t, ctx, wrapped, context.Canceled)
	ctx, cancel = context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	s.ended(t, ctx, wrapped, context.DeadlineExceeded)
}

// ended makes each call with a context that has ended.
func (s *suite) ended(t *testing.T, ctx context.Context, wrapped []byte, cause error) {
	t.Helper()
	start := time.Now()
	_, err := s.w.Newest(ctx, s.k)
	checkError(t, err, kek.Unreachable, "newest", s.k, kek.Version{})
	checkCause(t, err, cause)
	b, err := s.w.Wrap(ctx, s.k, s.v, randomDEK())
	checkError(t, err, kek.Unreachable, "wrap", s.k, s.v)
	checkCause(t, err, cause)
	checkNil(t, b)
	dek := randomDEK()
	err = s.w.Unwrap(ctx, s.k, s.v, wrapped, dek)
	checkError(t, err, kek.Unreachable, "unwrap", s.k, s.v)
	checkCause(t, err, cause)
	checkZero(t, dek)
	if d := time.Since(start); d > Prompt {
		t.Errorf("calls with an ended context took %s", d)
	}
}

func (s *suite) concurrent(t *testing.T) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dek := randomDEK()
			wrapped, err := s.w.Wrap(t.Context(), s.k, s.v, dek)
			if err != nil {
				t.Error(err)
				return
			}
			var got [kek.Size]byte
			if err := s.w.Unwrap(t.Context(), s.k, s.v, wrapped, &got); err != nil {
				t.Error(err)
			}
			if got != *dek {
				t.Error("unwrapped DEK differs")
			}
		})
	}
	wg.Wait()
}

// arguments changes everything that was passed or returned, and uses it again.
func (s *suite) arguments(t *testing.T) {
	dek := randomDEK()
	want := *dek
	wrapped := s.wrap(t, s.v, dek)
	if *dek != want {
		t.Error("Wrap changed the DEK")
	}
	clear(dek[:])
	kept := bytes.Clone(wrapped)
	got := s.unwrap(t, s.v, wrapped)
	if got != want {
		t.Error("unwrapped DEK differs")
	}
	if !bytes.Equal(wrapped, kept) {
		t.Error("Unwrap changed the wrapped bytes")
	}
	clear(got[:])
	clear(wrapped)
	if s.unwrap(t, s.v, kept) != want {
		t.Error("unwrapped DEK differs after the first one and its wrapped bytes were wiped")
	}
	if again := s.wrap(t, s.v, &want); s.k.Alg == kek.RSAOAEP256 && bytes.Equal(again, kept) {
		t.Error("RSA-OAEP wrapped twice to the same bytes")
	}
}

func (s *suite) rotation(t *testing.T) {
	dek := randomDEK()
	wrapped := s.wrap(t, s.v, dek)
	v := s.o.Rotate(t)
	if got := newest(t, s.w, s.k); got != v {
		t.Errorf("newest is %s, not %s after rotation", got, v)
	}
	if s.unwrap(t, s.v, wrapped) != *dek {
		t.Error("unwrapped DEK of the old version differs")
	}
	again := s.wrap(t, v, dek)
	if s.unwrap(t, v, again) != *dek {
		t.Error("unwrapped DEK of the new version differs")
	}
	s.refused(t, s.v, again, kek.Rejected)
}

func (s *suite) disabled(t *testing.T) {
	dek := randomDEK()
	v := s.o.Rotate(t)
	wrapped, old := s.wrap(t, v, dek), s.wrap(t, s.v, dek)
	s.o.Disable(t, v)
	if got := newest(t, s.w, s.k); got != s.v {
		t.Errorf("newest is %s, not %s with the newer one disabled", got, s.v)
	}
	s.refused(t, v, wrapped, kek.Disabled)
	if s.unwrap(t, s.v, old) != *dek {
		t.Error("disabling one version hit another")
	}
	s.o.Disable(t, s.v)
	_, err := s.w.Newest(t.Context(), s.k)
	checkError(t, err, kek.Disabled, "newest", s.k, kek.Version{})
	s.refused(t, s.v, old, kek.Disabled)
	// Whether a disabled version wraps is the implementation's business.
	if _, err := s.w.Wrap(t.Context(), s.k, v, dek); err != nil {
		checkError(t, err, kek.Disabled, "wrap", s.k, v)
	}
	s.o.Enable(t, v)
	if got := newest(t, s.w, s.k); got != v {
		t.Errorf("newest is %s, not %s, enabled again", got, v)
	}
	if s.unwrap(t, v, wrapped) != *dek {
		t.Error("unwrapped DEK of an enabled version differs")
	}
}

func (s *suite) wrap(t *testing.T, v kek.Version, dek *[kek.Size]byte) []byte {
	t.Helper()
	wrapped, err := s.w.Wrap(t.Context(), s.k, v, dek)
	if err != nil {
		t.Fatal(err)
	}
	return wrapped
}

func (s *suite) unwrap(t *testing.T, v kek.Version, wrapped []byte) [kek.Size]byte {
	t.Helper()
	var dek [kek.Size]byte
	if err := s.w.Unwrap(t.Context(), s.k, v, wrapped, &dek); err != nil {
		t.Fatal(err)
	}
	return dek
}

// refused unwraps into an array that is not zero, and expects reason.
func (s *suite) refused(t *testing.T, v kek.Version, wrapped []byte, reason kek.Reason) {
	t.Helper()
	dek := randomDEK()
	err := s.w.Unwrap(t.Context(), s.k, v, wrapped, dek)
	checkError(t, err, reason, "unwrap", s.k, v)
	checkZero(t, dek)
}

func newest(t *testing.T, w kek.Wrapper, k kek.Key) kek.Version {
	t.Helper()
	v, err := w.Newest(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	if v.IsZero() {
		t.Fatal("newest version is zero")
	}
	return v
}

func randomDEK() *[kek.Size]byte {
	dek := new([kek.Size]byte)
	rand.Read(dek[:])
	return dek
}

func checkError(t *testing.T, err error, reason kek.Reason, op string, k kek.Key, v kek.Version) {
	t.Helper()
	e, ok := errors.AsType[*kek.Error](err)
	if !ok {
		t.Fatalf("%s: got %v, not a *kek.Error with reason %s", op, err, reason)
	}
	if e.Reason != reason {
		t.Errorf("%s: reason is %s, not %s: %v", op, e.Reason, reason, err)
	}
	if e.Op != op || e.Ref != k.Ref || e.Version != v {
		t.Errorf("error names %q, %q, %s, not %q, %q, %s", e.Op, e.Ref, e.Version, op, k.Ref, v)
	}
}

func checkCause(t *testing.T, err, cause error) {
	t.Helper()
	if !errors.Is(err, cause) {
		t.Errorf("cause is not %v: %v", cause, err)
	}
}

func checkZero(t *testing.T, dek *[kek.Size]byte) {
	t.Helper()
	if *dek != ([kek.Size]byte{}) {
		t.Error("DEK is not zero after an error")
	}
}

func checkNil(t *testing.T, b []byte) {
	t.Helper()
	if b != nil {
		t.Error("wrapped bytes with an error")
	}
}
