package strict

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// field is a key of a section: a struct field with its tags.
type field struct {
	index    int
	name     string
	required bool
	enum     []string
	min, max string
	tag      reflect.StructTag
}

// fields returns the keys of a section, in their order.
func fields(t reflect.Type) []field {
	fs := make([]field, 0, t.NumField())
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		if name := tag.Get("yaml"); name != "-" {
			fs = append(fs, field{index: i, name: name, required: tag.Get("required") == "true",
				enum: strings.Fields(tag.Get("enum")), min: tag.Get("min"), max: tag.Get("max"), tag: tag})
		}
	}
	return fs
}

// IsSection reports whether a value of that type has keys of its own.
func IsSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t != reflect.TypeFor[time.Time]()
}

// Tags of YAML scalars, as the parser resolves them.
const (
	tagString = "!!str"
	tagBool   = "!!bool"
	tagInt    = "!!int"
	tagFloat  = "!!float"
	tagTime   = "!!timestamp"
)

// parseScalar sets v to what text means. tag is the YAML type of text.
func parseScalar(v reflect.Value, tag, text string) error {
	if v.Kind() == reflect.Pointer {
		p := reflect.New(v.Type().Elem())
		v.Set(p)
		return parseScalar(p.Elem(), tag, text)
	}
	switch v.Interface().(type) {
	case bool:
		return parseBool(v, tag, text)
	case int, uint32, uint64:
		return parseInt(v, tag, text)
	case float64:
		return parseFloat(v, tag, text)
	case time.Time:
		return parseTime(v, tag, text)
	}
	if tag != tagString {
		return fmt.Errorf("%s is not text: put it in quotes", text)
	}
	if i := strings.IndexFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }); i >= 0 {
		return fmt.Errorf("has a control character after %d bytes", i)
	}
	switch v.Interface().(type) {
	case time.Duration:
		d, err := ParseDuration(text)
		v.SetInt(int64(d))
		return quoted(err, text)
	case Size:
		s, err := ParseSize(text)
		v.SetInt(int64(s))
		return quoted(err, text)
	case fs.FileMode:
		n, err := strconv.ParseUint(text, 8, 12)
		if err != nil || len(text) != 4 || fs.FileMode(n)&^fs.ModePerm != 0 {
			return fmt.Errorf(`%q is not a file mode such as "0600"`, text)
		}
		v.SetUint(n)
	default:
		v.SetString(text)
	}
	return nil
}

func quoted(err error, text string) error {
	if err != nil {
		return fmt.Errorf("%q is %w", text, err)
	}
	return nil
}

func parseBool(v reflect.Value, tag, text string) error {
	if tag != tagBool || text != "true" && text != "false" {
		return fmt.Errorf("%q is not true or false", text)
	}
	v.SetBool(text == "true")
	return nil
}

func parseInt(v reflect.Value, tag, text string) error {
	n, err := strconv.ParseUint(text, 10, 63)
	if tag != tagInt || err != nil || len(text) > 1 && text[0] == '0' {
		return fmt.Errorf("%q is not a whole number", text)
	}
	switch {
	case v.Kind() == reflect.Int:
		v.SetInt(int64(n))
	case v.OverflowUint(n):
		return fmt.Errorf("%s is too large", text)
	default:
		v.SetUint(n)
	}
	return nil
}

// parseTime reads RFC 3339, in quotes or not. YAML's other notations of a time
// are refused, and what time.Parse takes beyond the RFC,
// which it writes otherwise. Nobody means the zero time, which would be read as none.
func parseTime(v reflect.Value, tag, text string) error {
	t, err := time.Parse(time.RFC3339, text)
	whole := text
	if n := len("2006-01-02T15:04:05"); len(text) > n && text[n] == '.' {
		whole = text[:n] + strings.TrimLeft(text[n+1:], "0123456789")
	}
	again := whole == t.Format(time.RFC3339) || whole == t.Format("2006-01-02T15:04:05-07:00")
	_, offset := t.Zone()
	if err != nil || !again || max(offset, -offset) >= int(day/time.Second) || t.IsZero() || tag != tagString && tag != tagTime {
		return fmt.Errorf(`%q is not a time such as "2026-12-31T18:00:00Z" or "2026-12-31T18:00:00+01:00"`, text)
	}
	v.Set(reflect.ValueOf(t))
	return nil
}

func parseFloat(v reflect.Value, tag, text string) error {
	f, err := strconv.ParseFloat(text, 64)
	if tag != tagFloat && tag != tagInt || err != nil || math.IsNaN(f) || math.IsInf(f, 0) ||
		strings.Trim(text, "0123456789.") != "" {
		return fmt.Errorf("%q is not a number such as 0.5", text)
	}
	v.SetFloat(f)
	return nil
}

// checkBounds checks v against the tags of its field.
func (f *field) checkBounds(v reflect.Value) error {
	v = reflect.Indirect(v)
	if len(f.enum) > 0 {
		if slices.Contains(f.enum, v.String()) {
			return nil
		}
		return fmt.Errorf("%q is not %s%s", shorten(v.String()), strings.Join(f.enum, ", "), hint(v.String(), f.enum))
	}
	if f.required && v.Kind() == reflect.String && v.String() == "" {
		return errors.New("is empty")
	}
	if f.min != "" && less(v, bound(v.Type(), f.min)) || f.max != "" && less(bound(v.Type(), f.max), v) {
		return fmt.Errorf("%s is not from %s to %s", FormatScalar(v), f.min, f.max)
	}
	return nil
}

// bound reads a min or max tag.
func bound(t reflect.Type, text string) reflect.Value {
	v := reflect.New(t).Elem()
	tag := tagString
	switch t.Kind() {
	case reflect.Int, reflect.Uint32, reflect.Uint64, reflect.Float64:
		tag = tagInt
	}
	if err := parseScalar(v, tag, text); err != nil {
		panic("strict: internal error: bound: " + err.Error())
	}
	return v
}

func less(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.Int, reflect.Int64:
		return a.Int() < b.Int()
	case reflect.Uint32, reflect.Uint64:
		return a.Uint() < b.Uint()
	case reflect.Float64:
		return a.Float() < b.Float()
	}
	panic("strict: internal error: no order of " + a.Type().String())
}

// FormatScalar writes v as the files do, without quotes.
func FormatScalar(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return FormatDuration(x)
	case fs.FileMode:
		return fmt.Sprintf("%04o", uint32(x))
	}
	return fmt.Sprint(v.Interface())
}
