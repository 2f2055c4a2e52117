package sealer

import "github.com/keysidecar/keysidecar/tenant"

// CheckWarm is the check of a DEK that was in memory.
func CheckWarm(t *tenant.Entry, ref string) error { return checkWarm(t, ref) }
