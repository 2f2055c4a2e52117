// Package wycheproof runs the published vectors of project Wycheproof against
// internal/cobblestone. It is a module of its own so that the vectors do not become
// a dependency of the program.
package wycheproof_test

import (
	"bytes"
	"compress/zlib"
	"crypto/rand"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"testing"

	"github.com/c2sp/wycheproof"
	"github.com/keysidecar/keysidecar/internal/cobblestone"
)

const vectorFile = "c2sp_chunked_encryption_aes_256_gcm_test.json"

// hexBytes is a byte string in hexadecimal.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) error {
	var err error
	*h, err = hex.DecodeString(string(text))
	return err
}

// compressed is a byte string, compressed by zlib, in hexadecimal.
type compressed []byte

func (c *compressed) UnmarshalText(text []byte) error {
	var packed hexBytes
	if err := packed.UnmarshalText(text); err != nil {
		return err
	}
	r, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		return err
	}
	*c, err = io.ReadAll(r)
	return err
}

type file struct {
	Algorithm     string
	Header        []string
	Notes         map[string]json.RawMessage
	NumberOfTests int
	Schema        string
	TestGroups    []group
}

type group struct {
	Type, Aead, Sha string
	Source          json.RawMessage
	Tests           []vector
}

type vector struct {
	TcID      int
	Comment   string
	Key, Ctx  hexBytes
	Ct        compressed
	AEADKey   hexBytes
	BaseNonce hexBytes
	// MsgLength and MsgSHA512 describe the message, or with partialPlaintext the
	// longest prefix that a Reader may return before the error.
	MsgLength *int
	MsgSHA512 hexBytes
	Result    string
	Flags     []string
}

// The flags that are known; those without a name here say nothing about how to run a vector.
const (
	headerFailure    = "HeaderFailure"
	invalidKeySize   = "InvalidKeySize"
	partialPlaintext = "PartialPlaintext"
)

var knownFlags = []string{
	"ChunkReordering", "CounterRollover", headerFailure, invalidKeySize, "ModifiedCiphertext",
	partialPlaintext, "TrailingData", "Truncation", "ValidFinalChunk", "WrongContext", "WrongKey",
}

// parse refuses what it does not know: a vector that is not understood proves nothing.
func parse(data []byte) ([]vector, error) {
	var f file
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, fmt.Errorf("decoding vectors: %w", err)
	}
	if f.Algorithm != "Cobblestone-256" || f.Schema != "c2sp_chunked_encryption_schema.json" {
		return nil, fmt.Errorf("vectors are of %q in schema %q", f.Algorithm, f.Schema)
	}
	var all []vector
	for _, g := range f.TestGroups {
		if g.Type != "ChunkedEncryption" || g.Aead != "AEAD_AES_256_GCM" || g.Sha != "SHA-512" {
			return nil, fmt.Errorf("group is of %q with %q and %q", g.Type, g.Aead, g.Sha)
		}
		all = append(all, g.Tests...)
	}
	if len(all) == 0 || len(all) != f.NumberOfTests {
		return nil, fmt.Errorf("%d vectors, announced are %d", len(all), f.NumberOfTests)
	}
	for _, v := range all {
		if err := v.check(); err != nil {
			return nil, fmt.Errorf("vector %d: %w", v.TcID, err)
		}
	}
	return all, nil
}

func (v *vector) check() error {
	for _, flag := range v.Flags {
		if !slices.Contains(knownFlags, flag) {
			return fmt.Errorf("unknown flag %q", flag)
		}
	}
	switch v.Result {
	case "valid":
		if v.MsgLength == nil || len(v.MsgSHA512) != sha512.Size || len(v.Key) != cobblestone.KeySize {
			return errors.New("valid without a message or with a key of another size")
		}
	case "invalid":
		if partial := v.has(partialPlaintext); partial != (v.MsgLength != nil) || partial != (v.MsgSHA512 != nil) {
			return errors.New("the message's prefix is given without its flag, or the flag without it")
		}
	default:
		return fmt.Errorf("unknown result %q", v.Result)
	}
	return nil
}

func (v *vector) has(flag string) bool { return slices.Contains(v.Flags, flag) }

// matches reports whether message is the one that the vector describes.
func (v *vector) matches(message []byte) bool {
	sum := sha512.Sum512(message)
	return len(message) == *v.MsgLength && bytes.Equal(sum[:], v.MsgSHA512)
}

func load(t *testing.T) []byte {
	t.Helper()
	data, err := fs.ReadFile(wycheproof.TestVectors, vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestVectors(t *testing.T) {
	vectors, err := parse(load(t))
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, v := range vectors {
		if t.Run(fmt.Sprint(v.TcID), func(t *testing.T) { v.run(t) }) {
			count[v.Result]++
		}
	}
	if count["valid"] == 0 || count["invalid"] == 0 || count["valid"]+count["invalid"] != len(vectors) {
		t.Errorf("passed: %v of %d vectors", count, len(vectors))
	}
	t.Logf("%d valid, %d invalid", count["valid"], count["invalid"])
}

func (v *vector) run(t *testing.T) {
	if len(v.Key) != cobblestone.KeySize {
		// The type *[32]byte refuses it. What is left to check is that the vector says so.
		if !v.has(invalidKeySize) || v.Result != "invalid" {
			t.Errorf("%s: key of %d bytes", v.Comment, len(v.Key))
		}
		return
	}
	key := (*[cobblestone.KeySize]byte)(v.Key)
	message, err := cobblestone.Open(nil, key, v.Ctx, v.Ct)
	if v.Result == "invalid" {
		if message != nil || !errors.Is(err, cobblestone.ErrOpen) {
			t.Errorf("%s: Open = %d bytes, %v, want ErrOpen", v.Comment, len(message), err)
		}
	} else if err != nil || !v.matches(message) {
		t.Errorf("%s: Open = %d bytes, %v", v.Comment, len(message), err)
	}
	_, err = cobblestone.NewReader(bytes.NewReader(v.Ct), key, v.Ctx)
	if early := v.has(headerFailure); early != (err != nil) {
		t.Errorf("%s: NewReader: %v, want an error: %v", v.Comment, err, early)
	}
	for _, size := range []int{1, 13, 4093, 16384, 65537} {
		v.runReader(t, key, size)
	}
	if v.Result == "valid" {
		v.runSeal(t, key, message)
	}
}

// runReader opens the vector with a Reader, in reads of the given size.
func (v *vector) runReader(t *testing.T, key *[cobblestone.KeySize]byte, size int) {
	t.Helper()
	message, err := readAll(key, v.Ctx, v.Ct, size)
	switch {
	case v.Result == "valid":
		if err != nil || !v.matches(message) {
			t.Errorf("%s: Reader = %d bytes, %v", v.Comment, len(message), err)
		}
	case !errors.Is(err, cobblestone.ErrOpen):
		t.Errorf("%s: Reader = %d bytes, %v, want ErrOpen", v.Comment, len(message), err)
	case v.has(partialPlaintext):
		// A Reader may return less than the prefix; ours returns every good chunk.
		if !v.matches(message) {
			t.Errorf("%s: Reader returned %d bytes before the error, want %d", v.Comment, len(message), *v.MsgLength)
		}
	case len(message) != 0:
		t.Errorf("%s: Reader returned %d bytes before the error", v.Comment, len(message))
	}
}

// readAll returns what a Reader returns before an error, and the error unless it is io.EOF.
func readAll(key *[cobblestone.KeySize]byte, context, body []byte, size int) ([]byte, error) {
	r, err := cobblestone.NewReader(bytes.NewReader(body), key, context)
	if err != nil {
		return nil, err
	}
	var message bytes.Buffer
	buf := make([]byte, size)
	for {
		n, err := r.Read(buf)
		message.Write(buf[:n])
		if err == nil {
			continue
		}
		if n, again := r.Read(buf); n != 0 || !errors.Is(again, err) {
			return message.Bytes(), fmt.Errorf("reading on after %w: %d bytes, %w", err, n, again)
		}
		if errors.Is(err, io.EOF) {
			return message.Bytes(), nil
		}
		return message.Bytes(), err
	}
}

// runSeal seals the vector's message with the vector's salt: the body must be the vector's.
func (v *vector) runSeal(t *testing.T, key *[cobblestone.KeySize]byte, message []byte) {
	t.Helper()
	salt := v.Ct[:cobblestone.SaltSize]
	was := rand.Reader
	defer func() { rand.Reader = was }()

	rand.Reader = bytes.NewReader(salt)
	if body := cobblestone.Seal(nil, key, v.Ctx, message); !bytes.Equal(body, v.Ct) {
		t.Errorf("%s: Seal makes another body", v.Comment)
	}

	rand.Reader = bytes.NewReader(salt)
	var body bytes.Buffer
	w, err := cobblestone.NewWriter(&body, key, v.Ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, bytes.NewReader(message), make([]byte, 4093)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(body.Bytes(), v.Ct) {
		t.Errorf("%s: Writer makes another body", v.Comment)
	}
}

// The loader itself refuses files that would make TestVectors pass without testing.
func TestParseRefuses(t *testing.T) {
	data := load(t)
	for name, change := range map[string][2]string{
		"unknown result":    {`"result": "valid"`, `"result": "acceptable"`},
		"unknown flag":      {`"Truncation"`, `"SomethingNew"`},
		"unknown field":     {`"msgLength"`, `"messageLength"`},
		"unknown algorithm": {`"Cobblestone-256"`, `"Cobblestone-128"`},
		"unknown AEAD":      {`"AEAD_AES_256_GCM"`, `"AEAD_AES_128_GCM"`},
		"wrong count":       {`"numberOfTests": 35`, `"numberOfTests": 36`},
		"prefix unflagged":  {`"PartialPlaintext"`, `"Truncation"`},
	} {
		if !bytes.Contains(data, []byte(change[0])) {
			t.Errorf("%s: the file does not contain %s", name, change[0])
		}
		if _, err := parse(bytes.ReplaceAll(data, []byte(change[0]), []byte(change[1]))); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	const empty = `{"algorithm":"Cobblestone-256","schema":"c2sp_chunked_encryption_schema.json"}`
	if _, err := parse([]byte(empty)); err == nil {
		t.Error("a file without vectors: accepted")
	}
}
