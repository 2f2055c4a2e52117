//go:build !goexperiment.runtimesecret

package secret

// DoErases reports whether Do erases what f leaves behind.
const DoErases = false

// Do calls f. Built with GOEXPERIMENT=runtimesecret it also erases the
// registers, stack and unreachable heap that f leaves behind.
func Do(f func()) { f() }
