module github.com/keysidecar/keysidecar/test/noskip

go 1.26.0
