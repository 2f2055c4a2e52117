package tenant

// Limits bound the calls of one tenant, or of one caller. A zero field is the
// sidecar's default for it, not "none".
type Limits struct {
	// Rate is how many calls a second may begin on average: finite, not
	// negative.
	Rate float64
	// Burst is how many calls may begin at once after a pause: not negative.
	Burst int
	// Calls is how many calls may be under way at a time: not negative.
	Calls int
}
