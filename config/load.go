package config

import (
	"path/filepath"

	"github.com/keysidecar/keysidecar/config/internal/strict"
)

// Load reads and checks config.yaml at path and the files tenants.yaml and
// policy.yaml that it names. Wrong files give an *Error with their problems:
// those of the other two only where config.yaml has none.
func Load(path string) (*Config, error) {
	var ps strict.Problems
	c := Default()
	data := strict.Read(path, MaxConfigFile, &ps)
	if len(ps) > 0 {
		return nil, ps.Err()
	}
	c.decode(path, data, &ps)
	if len(ps) == 0 { // else most of their problems would be ours
		c.load(&ps)
	}
	if err := ps.Err(); err != nil {
		return nil, err
	}
	return c, nil
}

// Reload reads and checks tenants.yaml and policy.yaml of c once more, and
// returns a copy of c with what they say now. Problems of both come as an
// *Error. c is not changed.
func Reload(c *Config) (*Config, error) {
	var ps strict.Problems
	out := *c
	out.load(&ps)
	if err := ps.Err(); err != nil {
		return nil, err
	}
	return &out, nil
}

// load sets Tenants and Policy.
func (c *Config) load(ps *strict.Problems) {
	var more strict.Problems
	c.Tenants = loadTenants(c.TenantsFile, c, ps)
	known := c.Tenants
	if len(*ps) > 0 {
		known = nil
	}
	c.Policy = loadPolicy(c.PolicyFile, known, &more)
	for _, p := range more {
		ps.Add(p)
	}
}

// decode sets c, which has the defaults, from data, and checks it.
func (c *Config) decode(path string, data []byte, ps *strict.Problems) {
	f := strict.Parse(path, data, ps)
	f.Decode(c)
	c.Path = path
	if c.Listen.AdminSocket == "" {
		c.Listen.AdminSocket = filepath.Join(filepath.Dir(c.Listen.Socket), "admin.sock")
	}
	if len(*ps) == 0 {
		c.check(f)
	}
}
