module github.com/keysidecar/keysidecar/test/wycheproof

go 1.26.4

require (
	github.com/c2sp/wycheproof v0.0.0-20260902155932-3fa63dd0344a
	github.com/keysidecar/keysidecar v0.0.0
)

replace github.com/keysidecar/keysidecar => ../..
