package main

import (
	"errors"
	"io/fs"
	"math"
	"path"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
)

// maxProcs is how many threads a sidecar computes on at most, so that it
// leaves the machine to the workload, unless GOMAXPROCS is set.
const maxProcs = 2

// checkEnvironment refuses what makes the Go runtime, or a library, print or
// dump what no log may have.
func checkEnvironment(getenv func(string) string) error {
	// What the libraries look for. That debug.SetTraceback cannot lower what
	// GOTRACEBACK says is why both are refused.
	if godebug := getenv("GODEBUG"); strings.Contains(godebug, "http2debug=1") || strings.Contains(godebug, "http2debug=2") {
		return permanent(errors.New("GODEBUG has http2debug, which prints access tokens and plaintext: " +
			"remove it, or look at the traffic of `keysidecar dev`"))
	}
	if getenv("GOTRACEBACK") == "crash" {
		return permanent(errors.New("GOTRACEBACK is crash, which dumps the memory of a process that panics: remove it"))
	}
	if getenv("AZURE_SDK_GO_LOGGING") == "all" {
		return permanent(errors.New("AZURE_SDK_GO_LOGGING is all, which prints what vaults answer that fail, " +
			"and what they may echo, such as access tokens and keys: remove it"))
	}
	if level := getenv("GRPC_GO_LOG_SEVERITY_LEVEL"); level != "" && !strings.EqualFold(level, "error") {
		return permanent(errors.New("GRPC_GO_LOG_SEVERITY_LEVEL is not error: info prints what is written to the socket " +
			"that is not gRPC, warning what callers send as metadata, and either may be plaintext: remove it, or make it error"))
	}
	return nil
}

// runtimeLimits are the limits under which the Go runtime works.
type runtimeLimits struct {
	procs  int
	memory int64 // bytes; math.MaxInt64 is none
	// available is how many bytes the process may use in all, as far as anybody
	// says: the cgroup, else GOMEMLIMIT; 0 if nobody does.
	available int64
}

// limitRuntime sets the defaults of a sidecar where the environment sets
// nothing: 2 threads, and a soft memory limit of 80 % of what the cgroup has.
// fsys is the root of the file system.
func limitRuntime(getenv func(string) string, fsys fs.FS) runtimeLimits {
	if getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(min(maxProcs, runtime.GOMAXPROCS(0)))
	}
	if limit := cgroupMemory(fsys); limit < math.MaxInt64 && getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit / 10 * 8)
	}
	limits := runtimeLimits{procs: runtime.GOMAXPROCS(0), memory: debug.SetMemoryLimit(-1), available: cgroupMemory(fsys)}
	if limits.available == math.MaxInt64 {
		limits.available = limits.memory
	}
	if limits.available == math.MaxInt64 {
		limits.available = 0
	}
	return limits
}

// cgroupMemory returns the least memory.max, in bytes, of this process's
// cgroup and of those above it, and math.MaxInt64 if there is none: without a
// limit, without cgroup v2, on other systems than Linux.
func cgroupMemory(fsys fs.FS) int64 {
	const root = "sys/fs/cgroup"
	least := int64(math.MaxInt64)
	groups, err := fs.ReadFile(fsys, "proc/self/cgroup")
	if err != nil {
		return least
	}
	for line := range strings.Lines(string(groups)) {
		group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		// A cgroup outside of this namespace begins with "/..": Clean leaves
		// the root of the namespace, or a directory that is not there.
		for dir := path.Join(root, path.Clean("/"+group)); ; dir = path.Dir(dir) {
			least = min(least, memoryMax(fsys, dir))
			if dir == root {
				break
			}
		}
	}
	return least
}

// memoryMax returns the memory.max of one cgroup, math.MaxInt64 if it has none.
func memoryMax(fsys fs.FS, dir string) int64 {
	text, err := fs.ReadFile(fsys, path.Join(dir, "memory.max"))
	if err != nil {
		return math.MaxInt64
	}
	limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || limit <= 0 {
		return math.MaxInt64
	}
	return limit
}
