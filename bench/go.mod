module github.com/keysidecar/keysidecar/bench

go 1.26.0

require (
	github.com/hashicorp/golang-lru/v2 v2.0.7
	github.com/keysidecar/keysidecar v0.0.0
)

require golang.org/x/sys v0.49.0

replace github.com/keysidecar/keysidecar => ..
