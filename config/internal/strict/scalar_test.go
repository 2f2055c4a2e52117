package strict_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/config/internal/strict"
)

func TestDurationsAndSizesReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(0, int64(1000*24*time.Hour)).Draw(t, "duration"))
		unit := rapid.SampledFrom([]time.Duration{1, time.Millisecond, time.Second, time.Minute, time.Hour, 24 * time.Hour}).Draw(t, "unit")
		d = d.Truncate(unit)
		if got, err := strict.ParseDuration(strict.FormatDuration(d)); err != nil || got != d {
			t.Errorf("%s: %s, %v", strict.FormatDuration(d), got, err)
		}
		s := strict.Size(rapid.Int64Range(0, 1<<62).Draw(t, "size"))
		s = max(s>>rapid.IntRange(0, 6).Draw(t, "shift")<<(10*rapid.IntRange(0, 1).Draw(t, "KiB")), 0)
		if got, err := strict.ParseSize(s.String()); err != nil || got != s {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	})
}

func TestDurationAndSizeNotation(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 250 * time.Millisecond: "250ms", 90 * time.Minute: "1h30m", 5 * time.Minute: "5m", 10 * time.Minute: "10m",
		20 * time.Hour: "20h", 720 * time.Hour: "30d", 25 * time.Hour: "25h", time.Hour + time.Second: "1h0m1s",
	} {
		if got := strict.FormatDuration(d); got != want {
			t.Errorf("%s is written %q", d, got)
		}
	}
	for _, s := range []string{"", "5", "d", "-1d", "1.5d", "99999d", "1w", "5 m", "1MiB"} {
		if d, err := strict.ParseDuration(s); err == nil {
			t.Errorf("ParseDuration(%q) = %s", s, d)
		}
	}
	for s, want := range map[strict.Size]string{0: "0B", 1: "1B", 1024: "1KiB", 1025: "1025B", 1 << 20: "1MiB", 3 << 30: "3GiB", 1 << 50: "1PiB"} {
		if got := s.String(); got != want {
			t.Errorf("%d is written %q", int64(s), got)
		}
	}
	for _, s := range []string{"", "B", "1", "-1B", "+1B", "1.5MiB", "1MB", "1 MiB", "1mib", "9223372036854775808B", "8192PiB", "1MiBB"} {
		if n, err := strict.ParseSize(s); err == nil {
			t.Errorf("ParseSize(%q) = %d", s, n)
		}
	}
}
