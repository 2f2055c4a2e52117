package kektest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/keysidecar/keysidecar/kek"
)

// Sign implements kek.Signer.
func (m *Memory) Sign(ctx context.Context, k kek.Key, digest [32]byte) (kek.Signature, error) {
	var signature kek.Signature
	err := m.do(ctx, Call{Op: kek.OpSign, Key: k}, func(mk *memoryKey) error {
		v, err := mk.newest(time.Now())
		if err != nil {
			return err
		}
		signature, err = v.sign(k, digest)
		return err
	})
	return signature, err
}

// ImportEC makes k with exactly one enabled version, v, that is private, on
// P-256. If k exists, it is replaced. It is for test vectors.
func (m *Memory) ImportEC(k kek.Key, v kek.Version, private *ecdsa.PrivateKey) {
	m.imported(k, &memoryVersion{id: v, enabled: true, ec: private})
}

func newECKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic("kektest: internal error: " + err.Error())
	}
	return key
}

func (v *memoryVersion) sign(k kek.Key, digest [32]byte) (kek.Signature, error) {
	r, s, err := ecdsa.Sign(rand.Reader, v.ec, digest[:])
	if err != nil {
		return kek.Signature{}, fmt.Errorf("signing: %w", err)
	}
	rs := make([]byte, kek.SignatureSize)
	r.FillBytes(rs[:kek.SignatureSize/2])
	s.FillBytes(rs[kek.SignatureSize/2:])
	return kek.Signature{
		Version: v.id, Name: k.Vault + "/keys/" + k.Name + "/" + v.id.String(), RS: rs, Public: &v.ec.PublicKey,
	}, nil
}
