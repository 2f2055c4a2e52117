package config

import (
	"reflect"
	"time"
)

// TenantsFile is the zero tenants file, for the generator of the reference.
func TenantsFile() any { return tenantsFile{} }

// FormatScalar writes a value as the files do, without quotes.
func FormatScalar(v reflect.Value) string { return formatScalar(v) }

// Decode reads data as a config.yaml at path without its tenants file.
func Decode(path string, data []byte) (*Config, error) {
	var ps problems
	c := Default()
	c.decode(path, data, &ps)
	return c, ps.err()
}

// DecodeTenants reads data as a tenants file at path.
func DecodeTenants(path string, data []byte, c *Config) (*Tenants, error) {
	var ps problems
	t := parseTenants(path, data, c, &ps)
	return t, ps.err()
}

// The notations of scalars.
func ParseDuration(s string) (time.Duration, error) { return parseDuration(s) }
func FormatDuration(d time.Duration) string         { return formatDuration(d) }
func ParseSize(s string) (Size, error)              { return parseSize(s) }
