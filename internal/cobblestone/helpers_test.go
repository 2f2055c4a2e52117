package cobblestone_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha512"
	"io"
	"testing"

	"github.com/keysidecar/keysidecar/internal/cobblestone"
)

// The lengths at which something changes.
var lengths = []int{0, 1, 15, 16, 1000, 16383, 16384, 16385, 32767, 32768, 32769, 1<<20 - 1, 1 << 20, 1<<20 + 1}

const sealedChunkSize = cobblestone.ChunkSize + cobblestone.TagSize

func testKey() *[32]byte { return (*[32]byte)(bytes.Repeat([]byte{0xa7}, 32)) }

// pattern returns n bytes that do not repeat with the length of a chunk.
func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i%251 + i/cobblestone.ChunkSize)
	}
	return p
}

// useSalt makes crypto/rand return the salt, once, for the rest of the test.
func useSalt(t *testing.T, salt []byte) {
	t.Helper()
	was := rand.Reader
	rand.Reader = bytes.NewReader(salt)
	t.Cleanup(func() { rand.Reader = was })
}

// reference seals in the plainest way: crypto/hkdf, one new buffer a step.
func reference(t testing.TB, key *[32]byte, salt, context, plaintext []byte) []byte {
	t.Helper()
	info := "c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00" + string(salt) + string(context)
	okm, err := hkdf.Expand(sha512.New, key[:], info, 76)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(okm[:32])
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	body := append(bytes.Clone(salt), okm[44:]...)
	for i := 0; ; i++ {
		nonce := bytes.Clone(okm[32:44])
		nonce[11] ^= byte(i)
		nonce[10] ^= byte(i >> 8)
		nonce[9] ^= byte(i >> 16)
		n := min(len(plaintext), 16384)
		body = aead.Seal(body, nonce, plaintext[:n], nil)
		plaintext = plaintext[n:]
		if n < 16384 {
			return body
		}
	}
}

// sealStream seals with a Writer, in writes of the sizes given in turn.
func sealStream(t testing.TB, key *[32]byte, context, plaintext []byte, sizes ...int) []byte {
	t.Helper()
	var body bytes.Buffer
	w, err := cobblestone.NewWriter(&body, key, context)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; len(plaintext) > 0; i++ {
		n := min(len(plaintext), sizes[i%len(sizes)])
		if m, err := w.Write(plaintext[:n]); m != n || err != nil {
			t.Fatalf("Write(%d bytes) = %d, %v", n, m, err)
		}
		plaintext = plaintext[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return body.Bytes()
}

// openStream opens with a Reader in reads of the given size. It returns what the
// Reader returned before the error too, and fails if an error is not final.
func openStream(t testing.TB, src io.Reader, key *[32]byte, context []byte, size int) ([]byte, error) {
	t.Helper()
	r, err := cobblestone.NewReader(src, key, context)
	if err != nil {
		if r != nil {
			t.Fatal("NewReader returned a Reader and an error")
		}
		return nil, err
	}
	var plaintext []byte
	buf := make([]byte, size)
	for {
		n, err := r.Read(buf)
		plaintext = append(plaintext, buf[:n]...)
		if err == nil {
			continue
		}
		if n, again := r.Read(buf); n != 0 || again != err {
			t.Fatalf("Read after %v = %d, %v", err, n, again)
		}
		if r.HasKeys() || !allZero(r.Buffer()) {
			t.Fatalf("Reader keeps keys or plaintext after %v", err)
		}
		if err == io.EOF {
			err = nil
		}
		return plaintext, err
	}
}

func allZero(p []byte) bool { return len(bytes.Trim(p, "\x00")) == 0 }

func flip(body []byte, bit int) []byte {
	body = bytes.Clone(body)
	body[bit/8] ^= 1 << (bit % 8)
	return body
}
