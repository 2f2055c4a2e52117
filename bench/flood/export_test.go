package flood

import "context"

// Build makes the program keysidecar.
func Build(ctx context.Context, path string) error { return build(ctx, path) }
