package tenant_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/tenant"
)

const entra = "11111111-2222-3333-4444-555555555555"

// newKEK returns a valid KEK of that ref and URL.
func newKEK(ref, url string) tenant.KEK {
	return tenant.KEK{Ref: ref, URL: url, Alg: kek.RSAOAEP256, Region: "westeurope", Credential: "main", EntraTenant: entra}
}

// sample returns a valid Config with a rule of every sort.
func sample() tenant.Config {
	retired := newKEK("old", "https://kv-shared.vault.azure.net/keys/old")
	retired.Retired = true
	oct := newKEK("hsm", "https://pool.vault.localhost:8443/keys/hsm-{tenant}")
	oct.Alg, oct.Region = kek.A256KW, "northeurope"
	return tenant.Config{
		Hosts: []string{"*.vault.azure.net", "pool.vault.localhost:8443"},
		KEKs: []tenant.KEK{
			newKEK("acme", "https://kv-acme.vault.azure.net/keys/kek"), retired, oct,
			newKEK("each", "https://kv-{tenant}-x.vault.azure.net/keys/kek"),
			newKEK("shared", "https://kv-shared.vault.azure.net/keys/kek"),
		},
		Tenants: []tenant.Rule{
			{ID: "acme", KEK: "acme", AlsoOpens: []string{"old", "shared"}, Regions: []string{"westeurope", "northeurope"},
				Limits: tenant.Limits{Rate: math.MaxFloat64, Burst: math.MaxInt, Calls: math.MaxInt}},
			{ID: "closed", KEK: "hsm", Suspended: true, Audit: tenant.AuditFull},
			{Prefix: new("c-"), KEK: "each", AlsoOpens: []string{"hsm"}, Limits: tenant.Limits{Rate: 0.5, Burst: 1, Calls: 2},
				Audit: tenant.AuditAggregate},
			{Prefix: new("c-big-"), KEK: "shared"},
			{Prefix: new("x"), KEK: "shared", Regions: []string{"westeurope"}, Suspended: true},
		},
	}
}

func mustNew(t testing.TB, cfg tenant.Config) *tenant.Directory {
	t.Helper()
	d, err := tenant.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func mustParse(t testing.TB, s string) tenant.ID {
	t.Helper()
	id, err := tenant.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestLookup(t *testing.T) {
	d := mustNew(t, sample())
	const eu, kv = "westeurope", "https://kv-shared.vault.azure.net"
	shared := kek.Key{Ref: "shared", Vault: kv, Name: "kek", Alg: kek.RSAOAEP256, Region: eu, Credential: "main", EntraTenant: entra}
	old, acme := shared, shared
	old.Ref, old.Name = "old", "old"
	acme.Ref, acme.Vault = "acme", "https://kv-acme.vault.azure.net"
	hsm := kek.Key{Ref: "hsm", Vault: "https://pool.vault.localhost:8443", Name: "hsm-closed", Alg: kek.A256KW,
		Region: "northeurope", Credential: "main", EntraTenant: entra}
	each, hsm7 := shared, hsm
	each.Ref, each.Vault, hsm7.Name = "each", "https://kv-c-7-x.vault.azure.net", "hsm-c-7"
	for id, want := range map[string]*tenant.Entry{
		"acme": {KEKs: []kek.Key{acme, old, shared}, Regions: []string{eu, "northeurope"},
			Limits: tenant.Limits{Rate: math.MaxFloat64, Burst: math.MaxInt, Calls: math.MaxInt}},
		"closed": {KEKs: []kek.Key{hsm}, Suspended: true, Audit: tenant.AuditFull},
		"c-7": {KEKs: []kek.Key{each, hsm7}, Limits: tenant.Limits{Rate: 0.5, Burst: 1, Calls: 2},
			Audit: tenant.AuditAggregate},
		"c-big-1": {KEKs: []kek.Key{shared}},
		"c.1":     nil,
		"x":       {KEKs: []kek.Key{shared}, Regions: []string{eu}, Suspended: true},
		"X":       nil,
		"acme2":   nil,
	} {
		parsed := mustParse(t, id)
		for range 2 { // the second time from the cache
			got, err := d.Lookup(parsed)
			if want == nil {
				if !errors.Is(err, tenant.ErrUnknown) || got != nil {
					t.Errorf("Lookup(%s) = %v, %v, want ErrUnknown", id, got, err)
				}
				continue
			}
			want.ID = parsed
			if err != nil {
				t.Errorf("Lookup(%s): %v", id, err)
			} else if diff := cmp.Diff(want, got, cmp.AllowUnexported(tenant.ID{})); diff != "" {
				t.Errorf("Lookup(%s) (-want +got):\n%s", id, diff)
			}
		}
	}
	if e, err := d.Lookup(tenant.ID{}); !errors.Is(err, tenant.ErrUnknown) {
		t.Errorf("Lookup of the zero ID = %v, %v", e, err)
	}
}

func TestZeroIDIsUnknownEvenWithACatchAll(t *testing.T) {
	cfg := sample()
	cfg.Tenants = []tenant.Rule{{Prefix: new(""), KEK: "shared"}}
	d := mustNew(t, cfg)
	if e, err := d.Lookup(tenant.ID{}); !errors.Is(err, tenant.ErrUnknown) {
		t.Errorf("Lookup of the zero ID = %v, %v", e, err)
	}
	if _, err := d.Lookup(mustParse(t, "Anybody.At:all")); err != nil {
		t.Error(err)
	}
}

func TestTemplateRefusesIDs(t *testing.T) {
	cfg := sample()
	cfg.Tenants = []tenant.Rule{{Prefix: new(""), KEK: "each"}}
	d := mustNew(t, cfg)
	for _, id := range []string{
		"a", "ab", "Abc", "abC", "a.b", "a_b", "a:b", "1ab", "a--b", "evil.com", "evil.com:443", "xn--a",
		strings.Repeat("a", 25), "a.vault.azure.net:1",
		strings.Repeat("a", 20), // legal by itself, but kv-...-x is 25
	} {
		if e, err := d.Lookup(mustParse(t, id)); !errors.Is(err, tenant.ErrTemplate) || e != nil {
			t.Errorf("Lookup(%s) = %v, %v, want ErrTemplate", id, e, err)
		} else if strings.Contains(err.Error(), "vault.azure.net") {
			t.Errorf("Lookup(%s): %q names a host", id, err)
		}
	}
	for _, id := range []string{"abc", "a-b", "a-1", strings.Repeat("a", 19)} {
		if _, err := d.Lookup(mustParse(t, id)); err != nil {
			t.Errorf("Lookup(%s): %v", id, err)
		}
	}
}

// FuzzTemplate: whatever the ID, the host is one label before the suffix as
// the template has it, and the key's name keeps to its place.
func FuzzTemplate(f *testing.F) {
	for _, id := range []string{"abc", "c-7", "evil.com", "a..b", "A", "x/../y", "a.vault.azure.net", "abc\x00", "a--b", "a{tenant}"} {
		f.Add(id)
	}
	cfg := sample()
	cfg.Tenants = []tenant.Rule{{Prefix: new(""), KEK: "each", AlsoOpens: []string{"hsm"}}}
	d := mustNew(f, cfg)
	f.Fuzz(func(t *testing.T, s string) {
		id, err := tenant.Parse(s)
		if err != nil {
			return
		}
		e, err := d.Lookup(id)
		if err != nil {
			if !errors.Is(err, tenant.ErrTemplate) || e != nil {
				t.Fatalf("Lookup(%q) = %v, %v", s, e, err)
			}
			return
		}
		label, ok := strings.CutSuffix(strings.TrimPrefix(e.KEKs[0].Vault, "https://"), ".vault.azure.net")
		if !ok || label != "kv-"+s+"-x" || len(label) > 24 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			t.Errorf("Lookup(%q) reaches %s", s, e.KEKs[0].Vault)
		}
		if k := e.KEKs[1]; k.Vault != "https://pool.vault.localhost:8443" || k.Name != "hsm-"+s {
			t.Errorf("Lookup(%q) reaches %s", s, k)
		}
	})
}

func TestEntryKEK(t *testing.T) {
	e, err := mustNew(t, sample()).Lookup(mustParse(t, "acme"))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range e.KEKs {
		if got, ok := e.KEK([]byte(k.Ref)); !ok || got != k {
			t.Errorf("KEK(%s) = %v, %t", k.Ref, got, ok)
		}
	}
	for _, ref := range []string{"", "acm", "acmee", "each", "Acme"} {
		if got, ok := e.KEK([]byte(ref)); ok {
			t.Errorf("KEK(%q) = %v", ref, got)
		}
	}
}

func TestEntryAllows(t *testing.T) {
	anywhere, somewhere := &tenant.Entry{}, &tenant.Entry{Regions: []string{"a", "b"}}
	for _, tt := range []struct {
		e      *tenant.Entry
		region string
		want   bool
	}{{anywhere, "", true}, {anywhere, "a", true}, {somewhere, "b", true}, {somewhere, "c", false}, {somewhere, "", false}} {
		if got := tt.e.Allows(tt.region); got != tt.want {
			t.Errorf("%v allows %q: %t", tt.e.Regions, tt.region, got)
		}
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	d := mustNew(t, sample())
	ref := []byte("shared")
	for _, s := range []string{"acme", "c-big-1", "nobody"} {
		id := mustParse(t, s)
		allocs := testing.AllocsPerRun(100, func() {
			if e, err := d.Lookup(id); err == nil {
				e.KEK(ref)
				e.Allows("westeurope")
			}
		})
		if allocs != 0 {
			t.Errorf("Lookup(%s) allocates %v times", s, allocs)
		}
	}
}

func TestTemplateCacheIsBounded(t *testing.T) {
	cfg := sample()
	cfg.TemplateCache = 2
	d := mustNew(t, cfg)
	first, err := d.Lookup(mustParse(t, "c-1"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if _, err := d.Lookup(mustParse(t, fmt.Sprintf("c-%d", i+1))); err != nil {
			t.Fatal(err)
		}
	}
	if n := d.Made(); n != 2 {
		t.Errorf("%d entries are kept, want 2", n)
	}
	again, err := d.Lookup(mustParse(t, "c-1"))
	if err != nil || again == first || !slices.Equal(again.KEKs, first.KEKs) {
		t.Errorf("Lookup after eviction = %v, %v", again, err)
	}
}

func TestConcurrentLookups(t *testing.T) {
	cfg := sample()
	cfg.TemplateCache = 3
	d := mustNew(t, cfg)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 200 {
				id := mustParse(t, fmt.Sprintf("c-%d", i%7))
				if e, err := d.Lookup(id); err != nil || e.ID != id || e.KEKs[1].Name != "hsm-"+id.String() {
					t.Errorf("Lookup(%s) = %v, %v", id, e, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestEntriesDoNotShareWithConfig(t *testing.T) {
	cfg := sample()
	d := mustNew(t, cfg)
	cfg.Tenants[0].Regions[0] = "elsewhere"
	if e, err := d.Lookup(mustParse(t, "acme")); err != nil || !e.Allows("westeurope") {
		t.Errorf("changing the Config changed the directory: %v, %v", e, err)
	}
}
