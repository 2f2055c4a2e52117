// Package keysidecarv1 is the wire API of keysidecar: seal.proto, and the code
// that `make generate` makes of it.
package keysidecarv1
