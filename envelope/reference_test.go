package envelope_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/hkdf"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"maps"
	"math/big"
	"slices"
	"testing"
)

// This file is SPEC.md written down a second time, without any code of the
// package under test: plain, slow, and with every random value a parameter.
// It makes the vectors; the package has to agree with it.

func lp8(s string) []byte  { return append([]byte{byte(len(s))}, s...) }
func lp16(s []byte) []byte { return append(u16(len(s)), s...) }
func u16(n int) []byte     { return binary.BigEndian.AppendUint16(nil, uint16(n)) }
func u64(n uint64) []byte  { return binary.BigEndian.AppendUint64(nil, n) }

func cat[T ~[]byte](parts ...T) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// sorted returns the keys of m in order, so that files repeat.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func expand(key, info []byte, n int) []byte {
	return must(hkdf.Expand(sha512.New, key, string(info), n))
}

func refDEKIDInfo(tenant string) []byte {
	return cat([]byte("keysidecar/v1/dek-id\x00\x01"), lp16([]byte(tenant)))
}

func refDEKID(dek []byte, tenant string) []byte { return expand(dek, refDEKIDInfo(tenant), 16) }

func refHeader(dekID []byte) []byte { return cat([]byte("KSE\x01\x01\x00"), dekID) }

func refContext(pairs []pair) []byte {
	sorted := slices.Clone(pairs)
	slices.SortFunc(sorted, func(a, b pair) int { return slices.Compare([]byte(a.Key), []byte(b.Key)) })
	b := u16(len(sorted))
	for _, p := range sorted {
		b = cat(b, lp16([]byte(p.Key)), lp16([]byte(p.Value)))
	}
	return b
}

func refBinding(header []byte, tenant string, context []byte) []byte {
	return cat([]byte("keysidecar/v1/seal\x00"), header, lp16([]byte(tenant)), context)
}

func refInfo(salt, binding []byte) []byte {
	return cat([]byte("c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00"), salt, binding)
}

// refBody returns salt || commitment || chunks, and the 76 derived bytes.
func refBody(dek, salt, binding, plaintext []byte) (body, okm []byte) {
	okm = expand(dek, refInfo(salt, binding), 76)
	body = cat(salt, okm[44:76])
	aead := gcm(okm[:32])
	for i := 0; ; i++ {
		n := min(len(plaintext), 16384)
		nonce := slices.Clone(okm[32:44])
		subtle.XORBytes(nonce[4:], nonce[4:], u64(uint64(i)))
		body = aead.Seal(body, nonce, plaintext[:n], nil)
		if plaintext = plaintext[n:]; n < 16384 {
			return body, okm
		}
	}
}

func gcm(key []byte) cipher.AEAD { return must(cipher.NewGCM(must(aes.NewCipher(key)))) }

func refBranchID(branchKey []byte) []byte {
	return expand(branchKey, []byte("keysidecar/v1/branch-id\x00"), 16)
}

func refWrappingKey(branchKey []byte, tenant string, created uint64, dekID []byte) []byte {
	info := cat([]byte("keysidecar/v1/dek-wrap\x00\x01"), lp16([]byte(tenant)), u64(created), dekID)
	return expand(branchKey, info, 32)
}

func refBranchWrap(wrappingKey, nonce, dek []byte) []byte {
	return gcm(wrappingKey).Seal(slices.Clone(nonce), nonce, dek, nil)
}

func refBranchUnwrap(wrappingKey, wrapped []byte) ([]byte, error) {
	return gcm(wrappingKey).Open(nil, wrapped[:12], wrapped[12:], nil)
}

// refBlock is a key block that may break every rule.
type refBlock struct {
	version, kind, purpose, alg byte
	keyID                       []byte
	created                     uint64
	tenant, kekRef              string
	parent, wrapped, proof      []byte
	tail                        []byte
}

func (b refBlock) encode() []byte {
	return cat([]byte{b.version, b.kind, b.purpose, b.alg}, b.keyID, u64(b.created), lp8(b.tenant), lp8(b.kekRef),
		b.parent, lp16(b.wrapped), lp16(b.proof), b.tail)
}

func (b refBlock) signed() []byte {
	return cat([]byte("keysidecar/v1/proof\x00"), []byte{b.kind, b.purpose}, b.keyID, u64(b.created), lp8(b.tenant))
}

func refBundle(envelope []byte, blocks ...[]byte) []byte {
	b := append([]byte("KSB\x01"), byte(len(blocks)))
	for _, block := range blocks {
		b = append(b, lp16(block)...)
	}
	return append(b, envelope...)
}

func refSignerID(spki []byte) []byte {
	sum := sha256.Sum256(spki)
	return sum[:16]
}

// refProof signs deterministically (RFC 6979), so that vectors repeat.
func refProof(key *ecdsa.PrivateKey, signed []byte) []byte {
	digest := sha256.Sum256(signed)
	var sig struct{ R, S *big.Int }
	must(asn1.Unmarshal(must(key.Sign(nil, digest[:], crypto256)), &sig))
	signer := refSignerID(must(x509.MarshalPKIXPublicKey(&key.PublicKey)))
	return cat([]byte{1}, signer, sig.R.FillBytes(make([]byte, 32)), sig.S.FillBytes(make([]byte, 32)))
}

// refOAEP is RSAES-OAEP-ENCRYPT (RFC 8017, 7.1.1) with the seed as parameter,
// SHA-256 throughout and an empty label.
func refOAEP(pub *rsa.PublicKey, seed, message []byte) []byte {
	label := sha256.Sum256(nil)
	db := make([]byte, pub.Size()-sha256.Size-1)
	copy(db, label[:])
	db[len(db)-len(message)-1] = 1
	copy(db[len(db)-len(message):], message)
	subtle.XORBytes(db, db, mgf1(seed, len(db)))
	masked := make([]byte, sha256.Size)
	subtle.XORBytes(masked, seed, mgf1(db, sha256.Size))
	return refRSA(pub, cat([]byte{0}, masked, db))
}

// refPKCS1 is RSAES-PKCS1-v1_5, which no reader may accept.
func refPKCS1(pub *rsa.PublicKey, message []byte) []byte {
	em := make([]byte, pub.Size())
	for i := range em {
		em[i] = 0x77
	}
	em[0], em[1], em[len(em)-len(message)-1] = 0, 2, 0
	copy(em[len(em)-len(message):], message)
	return refRSA(pub, em)
}

func refRSA(pub *rsa.PublicKey, em []byte) []byte {
	c := new(big.Int).Exp(new(big.Int).SetBytes(em), big.NewInt(int64(pub.E)), pub.N)
	return c.FillBytes(make([]byte, pub.Size()))
}

func mgf1(seed []byte, n int) []byte {
	var out []byte
	for i := uint32(0); len(out) < n; i++ {
		sum := sha256.Sum256(binary.BigEndian.AppendUint32(slices.Clone(seed), i))
		out = append(out, sum[:]...)
	}
	return out[:n]
}

var errKeyWrap = errors.New("key wrap integrity check")

// refKeyWrap is RFC 3394, 2.2.1, for a multiple of 8 bytes.
func refKeyWrap(kek, key []byte) []byte {
	block := must(aes.NewCipher(kek))
	n := len(key) / 8
	out := cat([]byte{0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6}, key)
	for t := 1; t <= 6*n; t++ {
		i := (t-1)%n + 1
		var b [16]byte
		copy(b[:8], out[:8])
		copy(b[8:], out[8*i:])
		block.Encrypt(b[:], b[:])
		subtle.XORBytes(out[:8], b[:8], u64(uint64(t)))
		copy(out[8*i:8*i+8], b[8:])
	}
	return out
}

// refKeyUnwrap is RFC 3394, 2.2.2.
func refKeyUnwrap(kek, wrapped []byte) ([]byte, error) {
	block := must(aes.NewCipher(kek))
	n := len(wrapped)/8 - 1
	out := slices.Clone(wrapped)
	for t := 6 * n; t >= 1; t-- {
		i := (t-1)%n + 1
		var b [16]byte
		subtle.XORBytes(b[:8], out[:8], u64(uint64(t)))
		copy(b[8:], out[8*i:])
		block.Decrypt(b[:], b[:])
		copy(out[:8], b[:8])
		copy(out[8*i:8*i+8], b[8:])
	}
	for _, c := range out[:8] {
		if c != 0xa6 {
			return nil, errKeyWrap
		}
	}
	return out[8:], nil
}

func TestReferenceKeyWrap(t *testing.T) {
	// RFC 3394, 4.6: 256 bits of key data under a 256-bit KEK.
	kek := unhex("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	key := unhex("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f")
	want := unhex("28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21")
	if got := refKeyWrap(kek, key); !slices.Equal(got, want) {
		t.Errorf("wrap = %x, want %x", got, want)
	}
	if got, err := refKeyUnwrap(kek, want); err != nil || !slices.Equal(got, key) {
		t.Errorf("unwrap = %x, %v", got, err)
	}
}
