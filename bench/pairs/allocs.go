package pairs

import "runtime"

// Allocs returns how many heap allocations one call of f makes, averaged over 100 calls and
// rounded down, so that a rare one of the runtime's own does not count. Nothing else may
// run meanwhile.
func Allocs(f func()) uint64 {
	const calls = 100
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	f()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range calls {
		f()
	}
	runtime.ReadMemStats(&after)
	return (after.Mallocs - before.Mallocs) / calls
}
