package kektest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/kektest"
)

func key(alg kek.Alg) kek.Key {
	return kek.Key{Ref: "main", Vault: "https://tenants.vault.azure.net", Name: "kek", Alg: alg}
}

func TestMemory(t *testing.T) {
	for _, alg := range []kek.Alg{kek.RSAOAEP256, kek.A256KW} {
		t.Run(alg.String(), func(t *testing.T) {
			kektest.Run(t, func(*testing.T) (kek.Wrapper, kek.Key, kektest.Owner) {
				m, k := kektest.NewMemory(), key(alg)
				m.Create(k)
				return m, k, owner(m, k)
			})
		})
	}
}

func owner(m *kektest.Memory, k kek.Key) kektest.Owner {
	return kektest.Owner{
		Rotate:  func(testing.TB) kek.Version { return m.Rotate(k) },
		Disable: func(_ testing.TB, v kek.Version) { m.SetEnabled(k, v, false) },
		Enable:  func(_ testing.TB, v kek.Version) { m.SetEnabled(k, v, true) },
		Plant: func(t testing.TB, v kek.Version, b []byte) []byte {
			wrapped, err := m.Plant(k, v, b)
			if err != nil {
				t.Fatal(err)
			}
			return wrapped
		},
	}
}

func TestMemoryValidity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, k := kektest.NewMemory(), key(kek.A256KW)
		v := m.Create(k)
		var dek [kek.Size]byte
		wrapped, err := m.Wrap(t.Context(), k, v, &dek)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		m.SetValidity(k, v, now.Add(time.Minute), now.Add(2*time.Minute))
		for _, step := range []struct {
			wraps bool
			wait  time.Duration
		}{{false, time.Minute}, {true, time.Minute}, {false, 0}} {
			_, newestErr := m.Newest(t.Context(), k)
			_, wrapErr := m.Wrap(t.Context(), k, v, &dek)
			for _, err := range []error{newestErr, wrapErr} {
				if (err == nil) != step.wraps || err != nil && kek.ReasonOf(err) != kek.Disabled {
					t.Errorf("after %s: %v", time.Since(now), err)
				}
			}
			if err := m.Unwrap(t.Context(), k, v, wrapped, &dek); err != nil {
				t.Errorf("unwrap after %s: %v", time.Since(now), err)
			}
			<-time.After(step.wait)
		}
	})
}

func TestMemoryDelete(t *testing.T) {
	m, k := kektest.NewMemory(), key(kek.A256KW)
	m.Create(k)
	m.Delete(k)
	if _, err := m.Newest(t.Context(), k); kek.ReasonOf(err) != kek.NotFound {
		t.Errorf("deleted key: %v", err)
	}
}

func TestMemoryHook(t *testing.T) {
	m, k := kektest.NewMemory(), key(kek.A256KW)
	v := m.Create(k)
	cause := errors.New("cause")
	var calls []kektest.Call
	var fail error
	m.SetHook(func(_ context.Context, c kektest.Call) error {
		calls = append(calls, c)
		return fail
	})
	var dek [kek.Size]byte
	wrapped, err := m.Wrap(t.Context(), k, v, &dek)
	if err != nil {
		t.Fatal(err)
	}
	fail = &kek.Error{Reason: kek.Throttled, Status: 429, RetryAfter: time.Second}
	err = m.Unwrap(t.Context(), k, v, wrapped, &dek)
	want := &kek.Error{Reason: kek.Throttled, Op: "unwrap", Ref: "main", Version: v, Status: 429, RetryAfter: time.Second}
	if diff := cmp.Diff(error(want), err); diff != "" {
		t.Error(diff)
	}
	fail = cause
	_, err = m.Newest(t.Context(), k)
	if kek.ReasonOf(err) != kek.Unreachable || !errors.Is(err, cause) {
		t.Errorf("hook's error: %v", err)
	}
	if diff := cmp.Diff([]kektest.Call{{Op: "wrap", Key: k, Version: v}, {Op: "unwrap", Key: k, Version: v}, {Op: "newest", Key: k}}, calls); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(kektest.Counts{Newest: 1, Wrap: 1, Unwrap: 1}, m.Counts()); diff != "" {
		t.Error(diff)
	}
}
