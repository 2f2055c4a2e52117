package answer

// Doors for the external tests.
var (
	RetryAfter = retryAfter
	ErrorCodes = errorCodes
)
