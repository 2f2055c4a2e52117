package sealer_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/tenant"
)

// records is a Config.Record that refuses as it is told.
type records struct {
	all []sealer.Event
	err error
}

func (r *records) record(_ context.Context, e sealer.Event) error {
	r.all = append(r.all, e)
	return r.err
}

// Every operation is recorded once, before its answer, with what is known of it.
func TestRecord(t *testing.T) {
	rec := &records{}
	r := newRig(t, func(c *sealer.Config) { c.Record = rec.record })
	r.entries["globex"].Audit = tenant.AuditFull
	res := r.mustSeal(t, request("globex", []byte("data"), "purpose", "billing", "secret", "x"))
	_, err := r.Unseal(t.Context(), request("globex", res.Data, "purpose", "wrong"))
	if reasonOf(err) != sealer.AuthenticationFailed {
		t.Fatal(err)
	}
	if _, err := r.Seal(t.Context(), request("sleepy", nil)); reasonOf(err) != sealer.TenantSuspended {
		t.Fatal(err)
	}
	if _, err := r.Seal(t.Context(), request("acme", nil, "", "x")); reasonOf(err) != sealer.InvalidContext {
		t.Fatal(err)
	}
	want := []sealer.Event{
		{Verb: policy.Seal, Tenant: "globex", Audit: tenant.AuditFull, Allowed: true, Key: res.Key, Bytes: 4},
		{
			Verb: policy.Unseal, Tenant: "globex", Audit: tenant.AuditFull, Allowed: true,
			Key: dek.Info{ID: res.Key.ID}, Bytes: len(res.Data), Reason: sealer.AuthenticationFailed,
		},
		{Verb: policy.Seal, Tenant: "sleepy", Allowed: true, Reason: sealer.TenantSuspended},
		{Verb: policy.Seal, Tenant: "acme", Reason: sealer.InvalidContext},
	}
	keys := []string{"purpose", "other"}
	got := []map[string]string{rec.all[0].Listed(keys), rec.all[1].Listed(keys), rec.all[2].Listed(keys)}
	if diff := cmp.Diff([]map[string]string{{"purpose": "billing"}, {"purpose": "wrong"}, nil}, got); diff != "" {
		t.Errorf("listed (-want +got):\n%s", diff)
	}
	for i := range rec.all {
		rec.all[i].Duration, rec.all[i].Err = 0, nil
		want[i].Caller, want[i].CallerName = me(), "me"
	}
	if diff := cmp.Diff(want, rec.all, cmpopts.IgnoreUnexported(sealer.Event{})); diff != "" {
		t.Errorf("recorded (-want +got):\n%s", diff)
	}
}

// What cannot be recorded has no answer but that, whatever it would have been.
func TestNotRecorded(t *testing.T) {
	rec := &records{}
	r := newRig(t, func(c *sealer.Config) { c.Record = rec.record })
	sealed := r.mustSeal(t, request("acme", []byte("data"))).Data
	rec.err = errors.New("disk full")
	for name, c := range map[string]func() (sealer.Result, error){
		"seal":   func() (sealer.Result, error) { return r.Seal(t.Context(), request("acme", nil)) },
		"unseal": func() (sealer.Result, error) { return r.Unseal(t.Context(), request("acme", sealed)) },
		"denied": func() (sealer.Result, error) { return r.Seal(t.Context(), request("sleepy", nil)) },
	} {
		res, err := c()
		if got, retry := retryOf(err); got != sealer.AuditUnavailable || retry != time.Second || !errors.Is(err, rec.err) || res.Data != nil {
			t.Errorf("%s: %v, retry after %v, %d bytes", name, err, retry, len(res.Data))
		}
		if last := r.events[len(r.events)-1]; last.Reason != sealer.AuditUnavailable {
			t.Errorf("%s: observed %v", name, last.Reason)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	rec.err = ctx.Err()
	if _, err := r.Unseal(ctx, request("acme", sealed)); !errors.Is(err, context.Canceled) || reasonOf(err) != sealer.OK {
		t.Errorf("whose caller left: %v", err)
	}
}

// While nothing can be recorded, no vault is asked in vain; what is warm goes on.
func TestNotReady(t *testing.T) {
	var notReady error
	r := newRig(t, func(c *sealer.Config) { c.Ready = func() error { return notReady } })
	sealed := r.mustSeal(t, request("acme", []byte("data"))).Data
	before := r.vault.Counts()
	notReady = errors.New("disk full")
	if _, err := r.Unseal(t.Context(), request("acme", sealed)); err != nil {
		t.Errorf("warm: %v", err)
	}
	_, err := r.Seal(t.Context(), request("globex", nil))
	if got, retry := retryOf(err); got != sealer.AuditUnavailable || retry != time.Second || !errors.Is(err, notReady) {
		t.Errorf("cold: %v, retry after %v", err, retry)
	}
	if after := r.vault.Counts(); after != before {
		t.Errorf("the vault was asked: %+v, then %+v", before, after)
	}
}

// An operation that panics is recorded, and the panic goes on.
func TestPanicIsRecorded(t *testing.T) {
	rec := &records{}
	r := newRig(t, func(c *sealer.Config) { c.Record = rec.record })
	rules := &sealer.Rules{Policy: r.policy, Tenants: func(tenant.ID) (*tenant.Entry, error) {
		return &tenant.Entry{}, nil // no KEK: what asks for one panics
	}}
	s := newRig(t, func(c *sealer.Config) {
		c.Record, c.Rules = rec.record, func() *sealer.Rules { return rules }
	})
	panicked := func() (p any) {
		defer func() { p = recover() }()
		_, _ = s.Seal(t.Context(), request("acme", nil))
		return nil
	}()
	if panicked == nil || len(rec.all) != 1 || rec.all[0].Err == nil || rec.all[0].Reason != sealer.OK {
		t.Errorf("panic %v, recorded %+v", panicked, rec.all)
	}
}

// Denials are what somebody may not do; mistakes, limits and outages are not.
func TestDenials(t *testing.T) {
	var denials []string
	for _, r := range sealer.Reasons() {
		if r.Denial() {
			denials = append(denials, r.String())
		}
	}
	want := []string{
		"UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_TENANT", "UNKNOWN_TENANT", "AUTHENTICATION_FAILED", "KEK_NOT_ALLOWED",
		"RESIDENCY", "TENANT_SUSPENDED", "TENANT_SHREDDED",
	}
	if diff := cmp.Diff(want, denials); diff != "" {
		t.Errorf("denials (-want +got):\n%s", diff)
	}
}
