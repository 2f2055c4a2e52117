package devvault

import (
	"time"

	"github.com/keysidecar/keysidecar/kek/devvault/internal/state"
)

// KeySpec describes a key to create.
type KeySpec struct {
	// Type is "RSA", "EC" on curve P-256, either with "-HSM" (the same here),
	// or "oct-HSM". Empty means RSA.
	Type string
	// Bits is 2048, 3072 or 4096 for RSA and 256 for the others. Zero means
	// 2048 or 256.
	Bits int
	// NotBefore and Expires bound when the version wraps or signs; it unwraps
	// always.
	// They are kept in whole seconds. The zero time means no bound.
	NotBefore, Expires time.Time
	// Ops are the allowed key_ops in Azure's spelling ("wrapKey"). Nil means
	// all that fit the type: for EC "sign" and "verify".
	Ops []string
}

// Attributes is a change to a key version. Nil fields change nothing.
type Attributes struct {
	Enabled *bool
	// NotBefore and Expires: a zero time removes the bound.
	NotBefore, Expires *time.Time
	// Ops replaces the allowed key_ops; an empty, non-nil list allows none.
	Ops []string
}

// CreateVault makes a vault that answers, without keys. An existing one is
// left as it is. Names follow Azure: 3 to 24 of [a-z0-9-], a letter first.
func (s *Server) CreateVault(vault string) error { return s.state.Keys.CreateVault(vault) }

// CreateKey creates a key, or a new version of an existing one, and the vault
// if need be. It returns the version. RSA keys take up to seconds.
func (s *Server) CreateKey(vault, name string, spec KeySpec) (string, error) {
	if err := s.CreateVault(vault); err != nil {
		return "", err
	}
	if spec.Type == "" {
		spec.Type = state.TypeRSA
	}
	_, v, err := s.state.Keys.Create(vault, name, state.Spec{
		Type: spec.Type, Bits: spec.Bits, Ops: spec.Ops,
		NotBefore: unixOrZero(spec.NotBefore), Expires: unixOrZero(spec.Expires),
	})
	return idOf(v, err)
}

// Rotate adds a version of the same type, size and key_ops as the newest, and
// returns it.
func (s *Server) Rotate(vault, name string) (string, error) {
	_, v, err := s.state.Keys.Rotate(vault, name)
	return idOf(v, err)
}

// SetEnabled enables or disables a version; "" means the newest.
func (s *Server) SetEnabled(vault, name, version string, enabled bool) error {
	return s.SetAttributes(vault, name, version, Attributes{Enabled: &enabled})
}

// SetAttributes changes a version; "" means the newest.
func (s *Server) SetAttributes(vault, name, version string, a Attributes) error {
	c := state.Change{Enabled: a.Enabled, Ops: a.Ops}
	if a.NotBefore != nil {
		c.NotBefore = new(unixOrZero(*a.NotBefore))
	}
	if a.Expires != nil {
		c.Expires = new(unixOrZero(*a.Expires))
	}
	_, _, err := s.state.Keys.Update(vault, name, version, c)
	return err
}

// Delete deletes a key softly: it is not found until Recover.
func (s *Server) Delete(vault, name string) error {
	_, err := s.state.Keys.Delete(vault, name)
	return err
}

// Recover brings a softly deleted key back with all its versions.
func (s *Server) Recover(vault, name string) error {
	_, err := s.state.Keys.Recover(vault, name)
	return err
}

// Purge removes a softly deleted key for good.
func (s *Server) Purge(vault, name string) error { return s.state.Keys.Purge(vault, name) }

func idOf(v *state.Version, err error) (string, error) {
	if err != nil {
		return "", err
	}
	return v.ID, nil
}

func unixOrZero(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// IssueToken returns a new bearer token that the vaults accept for life, and
// the control API never. It does not survive a restart. At most 1,024 are
// kept.
func (s *Server) IssueToken(life time.Duration) string { return s.state.Tokens.Issue(life) }

// RevokeTokens ends every token that was issued. The one in TokenFile stays
// good.
func (s *Server) RevokeTokens() { s.state.Tokens.Revoke() }
