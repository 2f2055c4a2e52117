package record

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// ErrCheckpoint says that something is not a checkpoint of the log, signed by
// its key.
var ErrCheckpoint = errors.New("not a signed checkpoint of this log")

// Checkpoint says what a log was when it had Size records (C2SP tlog-checkpoint).
type Checkpoint struct {
	// Log is the origin.
	Log string
	// Size is the number of records.
	Size int64
	// Root is the root hash of their Merkle tree.
	Root tlog.Hash
}

// Text returns the checkpoint as it is signed.
func (c Checkpoint) Text() string {
	return c.Log + "\n" + strconv.FormatInt(c.Size, 10) + "\n" + base64.StdEncoding.EncodeToString(c.Root[:]) + "\n"
}

// Sign returns the checkpoint as a C2SP signed note.
func (c Checkpoint) Sign(by note.Signer) (string, error) {
	signed, err := note.Sign(&note.Note{Text: c.Text()}, by)
	if err != nil {
		return "", fmt.Errorf("signing a checkpoint: %w", err)
	}
	return string(signed), nil
}

// ParseCheckpoint takes a signed note apart, and checks no signature.
func ParseCheckpoint(signed string) (Checkpoint, error) {
	text, _, ok := strings.Cut(signed, "\n\n")
	if !ok {
		return Checkpoint{}, fmt.Errorf("%w: it has no signatures", ErrCheckpoint)
	}
	return parseText(text)
}

// parseText reads what Text writes.
func parseText(text string) (Checkpoint, error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 3 {
		return Checkpoint{}, fmt.Errorf("%w: it has %d lines", ErrCheckpoint, len(lines))
	}
	c := Checkpoint{Log: lines[0]}
	if err := CheckOrigin(c.Log); err != nil {
		return Checkpoint{}, fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	var err error
	if c.Size, err = strconv.ParseInt(lines[1], 10, 64); err != nil || strconv.FormatInt(c.Size, 10) != lines[1] || c.Size < 0 {
		return Checkpoint{}, fmt.Errorf("%w: its size is not a number", ErrCheckpoint)
	}
	if !decode(c.Root[:], lines[2]) {
		return Checkpoint{}, fmt.Errorf("%w: its root is not a hash", ErrCheckpoint)
	}
	return c, nil
}

// OpenCheckpoint checks the signature of the log's key, and takes the note apart.
func OpenCheckpoint(signed string, key note.Verifier) (Checkpoint, error) {
	n, err := note.Open([]byte(signed), note.VerifierList(key))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	c, err := parseText(n.Text) // what was signed, not what looks like it
	if err == nil && c.Log != key.Name() {
		err = fmt.Errorf("%w: the key is of log %s", ErrCheckpoint, key.Name())
	}
	return c, err
}

// NewKey returns a new Ed25519 key of a log: what signs, and what others verify
// with, as C2SP signed-note writes it.
func NewKey(origin string) (note.Signer, string, error) {
	private, public, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return nil, "", fmt.Errorf("making a key for log %s: %w", origin, err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		return nil, "", fmt.Errorf("making a key for log %s: %w", origin, err)
	}
	return signer, public, nil
}

// NewVerifier returns what verifies with a public key from NewKey.
func NewVerifier(public string) (note.Verifier, error) {
	v, err := note.NewVerifier(public)
	if err != nil {
		return nil, fmt.Errorf("reading a log's key: %w", err)
	}
	if err := CheckOrigin(v.Name()); err != nil {
		return nil, fmt.Errorf("reading a log's key: %w", err)
	}
	return v, nil
}
