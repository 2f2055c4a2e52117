package kektest_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/kektest"
)

func TestMemorySigner(t *testing.T) {
	kektest.RunSigner(t, func(*testing.T) (kek.Signer, kek.Key, kektest.Owner) {
		m, k := kektest.NewMemory(), key(0)
		m.Create(k)
		return m, k, owner(m, k)
	})
}

// TestMemorySignerWrapsNothing: a key either wraps or signs.
func TestMemorySignerWrapsNothing(t *testing.T) {
	m, k := kektest.NewMemory(), key(0)
	v := m.Create(k)
	var dek [kek.Size]byte
	_, newestErr := m.Newest(t.Context(), k)
	_, wrapErr := m.Wrap(t.Context(), k, v, &dek)
	wraps := key(kek.RSAOAEP256)
	_, otherErr := m.Wrap(t.Context(), wraps, v, &dek)
	for _, err := range []error{newestErr, wrapErr, otherErr, m.Unwrap(t.Context(), k, v, make([]byte, 40), &dek)} {
		if err == nil || kek.ReasonOf(err) != kek.Unusable {
			t.Errorf("EC key: %v", err)
		}
	}
	m.Create(wraps)
	if _, err := m.Sign(t.Context(), k, [32]byte{}); err == nil || kek.ReasonOf(err) != kek.Unusable {
		t.Errorf("RSA key: %v", err)
	}
}

func TestMemorySignerValidity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, k := kektest.NewMemory(), key(0)
		v := m.Create(k)
		now := time.Now()
		m.SetValidity(k, v, now.Add(time.Minute), now.Add(2*time.Minute))
		for _, signs := range []bool{false, true, false} {
			_, err := m.Sign(t.Context(), k, [32]byte{})
			if (err == nil) != signs || err != nil && kek.ReasonOf(err) != kek.Disabled {
				t.Errorf("after %s: %v", time.Since(now), err)
			}
			<-time.After(time.Minute)
		}
	})
}

func TestMemorySignerHookAndCounts(t *testing.T) {
	m, k := kektest.NewMemory(), key(0)
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m.ImportEC(k, kek.Version{1}, private)
	if got, err := m.Sign(t.Context(), k, [32]byte{1}); err != nil || !got.Public.Equal(private.Public()) {
		t.Errorf("signed by another key: %v", err)
	}
	m.SetHook(func(_ context.Context, c kektest.Call) error {
		if diff := cmp.Diff(kektest.Call{Op: "sign", Key: k}, c); diff != "" {
			t.Error(diff)
		}
		return &kek.Error{Reason: kek.Throttled, Status: 429, RetryAfter: time.Second}
	})
	_, err = m.Sign(t.Context(), k, [32]byte{1})
	want := &kek.Error{Reason: kek.Throttled, Op: "sign", Ref: "main", Status: 429, RetryAfter: time.Second}
	if diff := cmp.Diff(error(want), err); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(kektest.Counts{Sign: 2}, m.Counts()); diff != "" {
		t.Error(diff)
	}
}
