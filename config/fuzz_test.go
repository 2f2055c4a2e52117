package config_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/tenant"
)

// checkError fails unless err is an *Error that names 1 to MaxProblems
// problems of the file, within its lines.
func checkError(t *testing.T, err error, data []byte) {
	var bad *config.Error
	if !errors.As(err, &bad) || len(bad.Problems) == 0 || len(bad.Problems) > config.MaxProblems {
		t.Fatalf("%v is not a good *config.Error", err)
	}
	lines := strings.Count(string(data), "\n") + strings.Count(string(data), "\r") +
		strings.Count(string(data), "\u0085") + strings.Count(string(data), "\u2028") + strings.Count(string(data), "\u2029") + 2
	for _, p := range bad.Problems {
		if p.File != "f" || p.Text == "" || p.Line < 0 || p.Line > lines || len(p.String()) > 2000 {
			t.Errorf("problem %#v of a file with %d lines", p, lines)
		}
	}
}

func addSeeds(f *testing.F, kind string) {
	for _, pattern := range []string{"testdata/*.yaml", "testdata/bad/*.yaml"} {
		for _, name := range files(f, pattern, kind) {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
}

func FuzzLoad(f *testing.F) {
	addSeeds(f, "")
	f.Add([]byte(config.ReferenceConfig()))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := config.Decode("f", data)
		if err != nil {
			checkError(t, err, data)
			return
		}
		d := &c.DEK
		if c.APIVersion != "keysidecar/v1" || c.Listen.Socket == "" || c.Listen.Mode&^0o666 != 0 || c.KeyVault.LoadTimeout <= 0 ||
			d.HardAge() < d.SoftAge || d.SoftAge <= 0 || c.Cache.Entries <= 0 || c.Limits.UnaryBytes > 64*config.MiB || c.Limits.Drain < 0 {
			t.Errorf("not checked: %+v", c)
		}
		a := &c.Audit
		if (a.Dir == "") == (a.Sink == "dir") || len(a.Name) > 64 || len(a.Context) > 16 || a.MaxBytes < 4*a.SegmentBytes ||
			a.Interval < time.Second || a.Mode() == tenant.AuditDefault {
			t.Errorf("not checked: %+v", a)
		}
		if k, ok := a.SignerKey(); ok != (a.Signer.URL != "") || ok && (k.Vault+"/keys/"+k.Name != a.Signer.URL || k.Credential == "" || k.EntraTenant == "") {
			t.Errorf("signer %+v is key %+v, %t", a.Signer, k, ok)
		}
	})
}

func FuzzTenants(f *testing.F) {
	addSeeds(f, ".tenants")
	f.Add([]byte(config.ReferenceTenants()))
	c := mustLoad(f, "testdata/platform.yaml")
	f.Fuzz(func(t *testing.T, data []byte) {
		tenants, err := config.DecodeTenants("f", data, c)
		if err != nil {
			checkError(t, err, data)
			return
		}
		with := *c
		with.Tenants = tenants
		if got := config.Check(&with, &with); len(got) != 0 {
			t.Errorf("against itself: %v", got)
		}
		for _, k := range tenants.Config.KEKs {
			if !strings.HasPrefix(k.URL, "https://") || k.Alg == 0 || k.Ref == "" || k.Credential == "" {
				t.Errorf("not checked: %+v", k)
			}
		}
	})
}

func FuzzPolicy(f *testing.F) {
	addSeeds(f, ".policy")
	f.Add([]byte(config.ReferencePolicy()))
	tenants := mustLoad(f, "testdata/platform.yaml").Tenants
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := config.DecodePolicy("f", data, tenants)
		if err != nil {
			checkError(t, err, data)
			return
		}
		ended := 0
		for i, r := range p.Config.Rules {
			if len(r.Callers) == 0 || len(r.Tenants) == 0 || len(r.Verbs) == 0 || p.Line(i) < 1 || (r.Ticket == "") != r.NotAfter.IsZero() {
				t.Errorf("not checked: line %d: %+v", p.Line(i), r)
			}
			if !r.NotAfter.IsZero() {
				ended++
			}
		}
		if p.Policy == nil || len(p.Expired(time.Date(10_001, 1, 1, 0, 0, 0, 0, time.UTC))) != ended {
			t.Errorf("policy %+v", p)
		}
	})
}
