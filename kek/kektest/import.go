package kektest

import (
	"crypto/rsa"

	"github.com/keysidecar/keysidecar/kek"
)

// ImportRSA makes k with exactly one enabled version, v, that is private. If
// k exists, it is replaced. It is for test vectors.
func (m *Memory) ImportRSA(k kek.Key, v kek.Version, private *rsa.PrivateKey) {
	m.imported(k, &memoryVersion{id: v, enabled: true, rsa: private})
}

// ImportAES is ImportRSA for an A256KW key.
func (m *Memory) ImportAES(k kek.Key, v kek.Version, key [kek.Size]byte) {
	m.imported(k, &memoryVersion{id: v, enabled: true, aes: key})
}

func (m *Memory) imported(k kek.Key, v *memoryVersion) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys[nameOf(k)] = &memoryKey{alg: k.Alg, versions: []*memoryVersion{v}}
}
