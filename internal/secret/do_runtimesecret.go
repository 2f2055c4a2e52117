//go:build goexperiment.runtimesecret

package secret

import "runtime/secret"

// DoErases reports whether Do erases what f leaves behind.
const DoErases = true

// Do calls f and erases the registers and stack that f used at once, and the
// heap that f allocated once the garbage collector finds it unreachable. It
// does not cover goroutines that f starts, globals, or values still in use.
// It needs GOEXPERIMENT=runtimesecret; without it Do only calls f.
func Do(f func()) { secret.Do(f) }
