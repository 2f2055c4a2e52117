package config_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/config"
)

// sumsOf returns the hashes of texts, by path.
func sumsOf(dir string, texts map[string]string) map[string]string {
	sums := make(map[string]string)
	for name, text := range texts {
		sums[filepath.Join(dir, name)] = fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
	}
	return sums
}

// TestHashes has files change after they were read: the hashes are of what was
// read.
func TestHashes(t *testing.T) {
	text := map[string]string{
		"config.yaml": config.ReferenceConfig(), "tenants.yaml": config.ReferenceTenants(), "policy.yaml": config.ReferencePolicy(),
	}
	path := writeFiles(t, text["config.yaml"], text["tenants.yaml"], text["policy.yaml"])
	dir := filepath.Dir(path)
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func(what string, got map[string]string) {
		t.Helper()
		if diff := cmp.Diff(sumsOf(dir, text), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	c := mustLoad(t, path)
	write("config.yaml", "other")
	write("tenants.yaml", text["tenants.yaml"]+"# other\n")
	check("loaded", c.Hashes())
	c.Hashes()[path] = "" // nobody else's
	check("loaded, again", c.Hashes())

	now, err := config.Reload(c)
	if err != nil {
		t.Fatal(err)
	}
	check("loaded before a reload", c.Hashes())
	write("policy.yaml", "{") // config.yaml is not read again
	text["tenants.yaml"] += "# other\n"
	check("reloaded", now.Hashes())

	_, err = config.Reload(now)
	write("policy.yaml", "better")
	text["policy.yaml"] = "{"
	check("refused", config.HashesOf(fmt.Errorf("wrapped: %w", err)))
	if err := os.Remove(filepath.Join(dir, "policy.yaml")); err != nil {
		t.Fatal(err)
	}
	_, err = config.Reload(now)
	delete(text, "policy.yaml")
	check("refused, in part not read", config.HashesOf(err))

	_, err = config.Load(path)
	text = map[string]string{"config.yaml": "other"}
	check("not loaded", config.HashesOf(err))
	write("config.yaml", strings.Repeat("#", config.MaxConfigFile+1))
	_, err = config.Load(path)
	text = nil
	check("too long", config.HashesOf(err))
	for _, err := range []error{nil, io.EOF, errors.Join(io.EOF)} {
		if got := config.HashesOf(err); len(got) != 0 {
			t.Errorf("HashesOf(%v) = %v", err, got)
		}
	}
}
