package config_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/config"
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

func addSeeds(f *testing.F, tenants bool) {
	for _, pattern := range []string{"testdata/*.yaml", "testdata/bad/*.yaml"} {
		for _, name := range files(f, pattern, tenants) {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
}

func FuzzLoad(f *testing.F) {
	addSeeds(f, false)
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
	})
}

func FuzzTenants(f *testing.F) {
	addSeeds(f, true)
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

func TestDurationsAndSizesReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(0, int64(1000*24*time.Hour)).Draw(t, "duration"))
		unit := rapid.SampledFrom([]time.Duration{1, time.Millisecond, time.Second, time.Minute, time.Hour, 24 * time.Hour}).Draw(t, "unit")
		d = d.Truncate(unit)
		if got, err := config.ParseDuration(config.FormatDuration(d)); err != nil || got != d {
			t.Errorf("%s: %s, %v", config.FormatDuration(d), got, err)
		}
		s := config.Size(rapid.Int64Range(0, 1<<62).Draw(t, "size"))
		s = max(s>>rapid.IntRange(0, 6).Draw(t, "shift")<<(10*rapid.IntRange(0, 1).Draw(t, "KiB")), 0)
		if got, err := config.ParseSize(s.String()); err != nil || got != s {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	})
}

func TestDurationAndSizeNotation(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 250 * time.Millisecond: "250ms", 90 * time.Minute: "1h30m", 5 * time.Minute: "5m", 10 * time.Minute: "10m",
		20 * time.Hour: "20h", 720 * time.Hour: "30d", 25 * time.Hour: "25h", time.Hour + time.Second: "1h0m1s",
	} {
		if got := config.FormatDuration(d); got != want {
			t.Errorf("%s is written %q", d, got)
		}
	}
	for _, s := range []string{"", "5", "d", "-1d", "1.5d", "99999d", "1w", "5 m", "1MiB"} {
		if d, err := config.ParseDuration(s); err == nil {
			t.Errorf("ParseDuration(%q) = %s", s, d)
		}
	}
	for s, want := range map[config.Size]string{0: "0B", 1: "1B", 1024: "1KiB", 1025: "1025B", 1 << 20: "1MiB", 3 << 30: "3GiB", 1 << 50: "1PiB"} {
		if got := s.String(); got != want {
			t.Errorf("%d is written %q", int64(s), got)
		}
	}
	for _, s := range []string{"", "B", "1", "-1B", "+1B", "1.5MiB", "1MB", "1 MiB", "1mib", "9223372036854775808B", "8192PiB", "1MiBB"} {
		if n, err := config.ParseSize(s); err == nil {
			t.Errorf("ParseSize(%q) = %d", s, n)
		}
	}
}
