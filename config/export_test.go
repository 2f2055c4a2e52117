package config

import (
	"reflect"

	"github.com/keysidecar/keysidecar/config/internal/strict"
)

// TenantsFile is the zero tenants file, for the generator of the reference.
func TenantsFile() any { return tenantsFile{} }

// PolicyFile is the zero policy file, for the generator of the reference.
func PolicyFile() any { return policyFile{} }

// FormatScalar writes a value as the files do, without quotes.
func FormatScalar(v reflect.Value) string { return strict.FormatScalar(v) }

// IsSection reports whether a value of that type has keys of its own.
func IsSection(t reflect.Type) bool { return strict.IsSection(t) }

// Decode reads data as a config.yaml at path without the other files.
func Decode(path string, data []byte) (*Config, error) {
	var ps strict.Problems
	c := Default()
	c.decode(path, data, &ps)
	return c, ps.Err(nil)
}

// DecodeTenants reads data as a tenants file at path.
func DecodeTenants(path string, data []byte, c *Config) (*Tenants, error) {
	var ps strict.Problems
	t := parseTenants(path, data, c, &ps)
	return t, ps.Err(nil)
}

// DecodePolicy reads data as a policy file at path, for those tenants.
func DecodePolicy(path string, data []byte, t *Tenants) (*Policy, error) {
	var ps strict.Problems
	p := parsePolicy(path, data, t, &ps)
	return p, ps.Err(nil)
}
