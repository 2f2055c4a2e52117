package strict

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// Size is a number of bytes, written as "512KiB".
type Size int64

// The units of a Size.
const (
	KiB Size = 1 << (10 * (iota + 1))
	MiB
	GiB
	TiB
	PiB
)

// sizeUnits are the units, largest first; "B" has to be the last one tried.
func sizeUnits() [6]struct {
	name string
	size Size
} {
	return [6]struct {
		name string
		size Size
	}{{"PiB", PiB}, {"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"B", 1}}
}

// String returns the size in its largest whole unit.
func (s Size) String() string {
	for _, u := range sizeUnits() {
		if s != 0 && s%u.size == 0 {
			return strconv.FormatInt(int64(s/u.size), 10) + u.name
		}
	}
	return "0B"
}

// ParseSize reads what String writes, and other whole numbers of a unit.
func ParseSize(text string) (Size, error) {
	for _, u := range sizeUnits() {
		digits, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 63)
		if err != nil || n > uint64(math.MaxInt64/u.size) {
			break
		}
		return Size(n) * u.size, nil
	}
	return 0, errors.New(`not a size such as "512KiB" (whole number; B, KiB, MiB, GiB, TiB, PiB)`)
}

// ParseDuration reads what time.ParseDuration does, and whole days ("30d").
func ParseDuration(text string) (time.Duration, error) {
	if digits, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(digits, 10, 16); err == nil {
			return time.Duration(n) * day, nil
		}
	} else if d, err := time.ParseDuration(text); err == nil {
		return d, nil
	}
	return 0, errors.New(`not a duration such as "1h30m", "250ms" or "30d"`)
}

// FormatDuration writes a duration the short way: 30d, 5m, 1h30m.
func FormatDuration(d time.Duration) string {
	if d >= day && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
