// Package dek is the life cycle of data keys: mint, ref, unwrap, retire.
//
// A Source keeps, per tenant, one active DEK that new messages are sealed
// with, and a bounded cache of unwrapped DEKs. It knows nothing of callers or
// policies: whoever calls it has decided already.
//
// A mint is: 32 random bytes; wrap; unwrap naming the version, and compare
// (Key Vault wraps under a disabled version, so only the proof shows that the
// DEK can be unwrapped later); then swap. No message is sealed with a DEK
// before its proof.
package dek
