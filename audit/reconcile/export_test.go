package reconcile

// Pair is match, for tests.
func Pair(records, uses []int64, tolerance int64) []int { return match(records, uses, tolerance) }
