package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"path/filepath"

	"github.com/keysidecar/keysidecar/config/internal/strict"
)

// Load reads and checks config.yaml at path and the files tenants.yaml and
// policy.yaml that it names. Wrong files give an *Error with their problems:
// those of the other two only where config.yaml has none.
func Load(path string) (*Config, error) {
	var ps strict.Problems
	c := Default()
	c.hashes = make(map[string]string)
	data := c.read(path, MaxConfigFile, &ps)
	if len(ps) > 0 {
		return nil, ps.Err(c.hashes)
	}
	c.decode(path, data, &ps)
	if len(ps) == 0 { // else most of their problems would be ours
		c.load(&ps)
	}
	if err := ps.Err(c.hashes); err != nil {
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
	out.hashes = map[string]string{c.Path: c.hashes[c.Path]}
	out.load(&ps)
	if err := ps.Err(out.hashes); err != nil {
		return nil, err
	}
	return &out, nil
}

// Hashes returns the SHA-256 of config.yaml, tenants.yaml and policy.yaml, in
// hex, by their paths: of the very bytes that c was made from, whatever is in the
// files by now. After a Reload, that of config.yaml is still Load's.
func (c *Config) Hashes() map[string]string { return maps.Clone(c.hashes) }

// HashesOf returns the same of the bytes that an error of Load or Reload is
// about: of the files that could be read.
func HashesOf(err error) map[string]string {
	bad, ok := errors.AsType[*Error](err)
	if !ok {
		return nil
	}
	return maps.Clone(bad.Hashes)
}

// read is strict.Read, and keeps the hash of what it returns.
func (c *Config) read(name string, limit int64, ps *strict.Problems) []byte {
	before := len(*ps)
	data := strict.Read(name, limit, ps)
	if len(*ps) == before {
		sum := sha256.Sum256(data)
		c.hashes[name] = hex.EncodeToString(sum[:])
	}
	return data
}

// load sets Tenants and Policy.
func (c *Config) load(ps *strict.Problems) {
	var more strict.Problems
	c.Tenants = c.loadTenants(ps)
	known := c.Tenants
	if len(*ps) > 0 {
		known = nil
	}
	c.Policy = c.loadPolicy(known, &more)
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
