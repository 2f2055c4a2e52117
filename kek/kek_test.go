package kek_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/kek"
)

func TestParseVersion(t *testing.T) {
	const good = "0123456789abcdef0123456789abcdef"
	v, err := kek.ParseVersion(good)
	if err != nil || v.String() != good || v.IsZero() {
		t.Errorf("ParseVersion(%s) = %s, %v", good, v, err)
	}
	for _, bad := range []string{"", good[1:], good + "0", strings.ToUpper(good), "g" + good[1:], strings.Repeat("0", 32), good[:31] + "é"} {
		if v, err := kek.ParseVersion(bad); err == nil || !v.IsZero() {
			t.Errorf("ParseVersion(%q) = %s, %v", bad, v, err)
		}
	}
}

func TestParseAlg(t *testing.T) {
	for _, a := range []kek.Alg{kek.RSAOAEP256, kek.A256KW} {
		if got, err := kek.ParseAlg(a.String()); err != nil || got != a {
			t.Errorf("ParseAlg(%s) = %s, %v", a, got, err)
		}
	}
	for _, bad := range []string{"", "rsa-oaep-256", "RSA1_5", "RSA-OAEP", "alg(3)"} {
		if a, err := kek.ParseAlg(bad); err == nil || a != 0 {
			t.Errorf("ParseAlg(%q) = %s, %v", bad, a, err)
		}
	}
}

func TestError(t *testing.T) {
	cause := errors.New("cause")
	err := error(&kek.Error{
		Reason: kek.Disabled, Op: "unwrap", Ref: "acme", Version: kek.Version{1}, Vault: "https://kv.example.com", Status: 403, Code: "KeyDisabled",
		RequestID: "r-1", RetryAfter: time.Second, Err: cause,
	})
	for _, want := range []string{"unwrap", "acme", " in https://kv.example.com: ", "disabled", "403", "KeyDisabled", "r-1", "cause", kek.Version{1}.String()} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not tell %q", err, want)
		}
	}
	if text := (&kek.Error{Op: "wrap", Ref: "acme"}).Error(); text != "wrap with KEK acme: unreachable" {
		t.Errorf("without a vault: %q", text)
	}
	if text := (&kek.Error{Op: kek.OpSign, Ref: "audit"}).Error(); text != "sign with key audit: unreachable" {
		t.Errorf("of a signature: %q", text)
	}
	if !errors.Is(err, cause) || kek.ReasonOf(err) != kek.Disabled || kek.RetryAfterOf(err) != time.Second {
		t.Errorf("cause, reason or delay of %v is lost", err)
	}
	if kek.ReasonOf(cause) != kek.Unreachable || kek.RetryAfterOf(cause) != 0 {
		t.Error("a stranger's error is no silence")
	}
	for r := kek.Unreachable; r <= kek.Unusable; r++ {
		want := r == kek.Disabled || r == kek.NotFound || r == kek.Forbidden
		if r.Refusal() != want || r.String() == "" {
			t.Errorf("%s: refusal = %t", r, r.Refusal())
		}
	}
}
