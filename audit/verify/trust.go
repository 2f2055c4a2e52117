package verify

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/keysidecar/keysidecar/audit/reader"
	"github.com/keysidecar/keysidecar/audit/record"
)

// ReadKeys reads a file of verifier keys, one a line. Empty lines, and those that
// begin with #, are left out.
func ReadKeys(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading logs' keys: %w", err)
	}
	var keys []string
	for number, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if _, err := record.NewVerifier(line); err != nil {
			return nil, fmt.Errorf("line %d of %s: %w", number+1, path, err)
		}
		keys = append(keys, line)
	}
	return keys, nil
}

// ReadSigners reads the public keys that certify logs' keys: PEM, as az keyvault
// key download writes it, or a JSON Web Key, alone or as az keyvault key show
// prints it. They must be EC P-256 keys.
func ReadSigners(path string) ([]*ecdsa.PublicKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading signers' keys: %w", err)
	}
	keys, err := parseSigners(data)
	if err != nil {
		return nil, fmt.Errorf("reading signers' keys from %s: %w", path, err)
	}
	return keys, nil
}

func parseSigners(data []byte) ([]*ecdsa.PublicKey, error) {
	if data = bytes.TrimSpace(data); bytes.HasPrefix(data, []byte{'{'}) {
		key, err := parseJWK(data)
		if err != nil {
			return nil, err
		}
		return []*ecdsa.PublicKey{key}, nil
	}
	var keys []*ecdsa.PublicKey
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("a PEM block is %.40q, not PUBLIC KEY", block.Type)
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		key, ok := parsed.(*ecdsa.PublicKey)
		if !ok || key.Curve != elliptic.P256() {
			return nil, errors.New("a key is not an EC P-256 key")
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("there is neither PEM nor JSON")
	}
	return keys, nil
}

// parseJWK reads a key as RFC 7517 and RFC 7518, section 6.2, write it.
func parseJWK(data []byte) (*ecdsa.PublicKey, error) {
	type jwk struct{ Kty, Crv, X, Y string }
	var key struct {
		jwk
		Key *jwk
	}
	if err := json.Unmarshal(data, &key); err != nil {
		return nil, fmt.Errorf("reading a JSON Web Key: %w", err)
	}
	if key.Key != nil {
		key.jwk = *key.Key
	}
	if key.Kty != "EC" && key.Kty != "EC-HSM" || key.Crv != "P-256" {
		return nil, fmt.Errorf("a JSON Web Key is %.20q on curve %.20q, not EC on P-256", key.Kty, key.Crv)
	}
	point := []byte{4} // SEC 1, section 2.3.3: both coordinates follow
	for _, text := range []string{key.X, key.Y} {
		raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
		if err != nil || len(raw) != 32 {
			return nil, errors.New("a JSON Web Key has coordinates that are not 32 bytes each")
		}
		point = append(point, raw...)
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
}

// ReadCheckpoints reads checkpoints from a file, or from all files of a directory
// but those in directories under it. A file has signed notes, one after another,
// or lines of a log that are checkpoints or begin segments; other lines of logs
// it leaves out.
func ReadCheckpoints(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading checkpoints: %w", err)
	}
	if !info.IsDir() {
		return readCheckpoints(path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("reading checkpoints: %w", err)
	}
	var all []string
	for _, entry := range entries {
		if entry.IsDir() {
			continue
		}
		notes, err := readCheckpoints(filepath.Join(path, entry.Name()))
		if err != nil {
			return nil, err
		}
		all = append(all, notes...)
	}
	return all, nil
}

func readCheckpoints(path string) ([]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading checkpoints: %w", err)
	}
	defer file.Close()
	var s noteScanner
	lines := bufio.NewScanner(file)
	for number := 1; lines.Scan(); number++ {
		if err := s.line(lines.Bytes()); err != nil {
			return nil, fmt.Errorf("reading checkpoints: line %d of %s: %w", number, path, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading checkpoints from %s: %w", path, err)
	}
	if err := s.end(); err != nil {
		return nil, fmt.Errorf("reading checkpoints from %s: %w", path, err)
	}
	return s.notes, nil
}

// noteScanner collects signed notes from lines.
type noteScanner struct {
	notes  []string
	note   []byte // the one being read
	signed bool   // it has a signature
}

// maxNote bounds a note: checkpoints are shorter.
const maxNote = record.MaxLine

func (s *noteScanner) line(line []byte) error {
	signature := bytes.HasPrefix(line, []byte("— "))
	if s.signed && !signature {
		if err := s.end(); err != nil {
			return err
		}
	}
	if text := reader.Strip(line); len(s.note) == 0 && bytes.HasPrefix(text, []byte(`{"log":"`)) {
		return s.record(text)
	}
	if len(line) == 0 && len(s.note) == 0 {
		return nil
	}
	if len(s.note)+len(line) > maxNote {
		return fmt.Errorf("%w: it is longer than %d bytes", record.ErrCheckpoint, maxNote)
	}
	s.note = append(append(s.note, line...), '\n')
	s.signed = signature
	return nil
}

// record takes the checkpoint from a line of a log.
func (s *noteScanner) record(line []byte) error {
	r, err := record.Parse(line)
	if err != nil {
		return err
	}
	if r.Pruned() {
		return nil
	}
	if !r.Intact() {
		return fmt.Errorf("%w: its event is not the one that was written", record.ErrMalformed)
	}
	e, err := record.ParseEvent(r.Event)
	if err != nil {
		return err
	}
	if e.Kind == record.CheckpointMade || e.Kind == record.Segment {
		s.notes = append(s.notes, e.Note)
	}
	return nil
}

// end ends the note that is being read.
func (s *noteScanner) end() error {
	if len(s.note) == 0 {
		return nil
	}
	if !s.signed {
		return fmt.Errorf("%w: it has no signature", record.ErrCheckpoint)
	}
	if _, err := record.ParseCheckpoint(string(s.note)); err != nil {
		return err
	}
	s.notes = append(s.notes, string(s.note))
	s.note, s.signed = s.note[:0], false
	return nil
}
