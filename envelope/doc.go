// Package envelope is every byte format of keysidecar: the envelope (header
// and body), the encryption context, key blocks and bundles of them, and the
// identifier of a data key. SPEC.md is normative.
//
// Encoders are canonical and parsers strict: what a parser accepts, the
// encoder reproduces byte for byte. Nothing here does I/O, reads a clock or
// knows what a key block's KEK may be used for; the order in which a reader
// makes its other checks is in SPEC.md, section 10.
//
// All functions are safe for concurrent use.
package envelope
