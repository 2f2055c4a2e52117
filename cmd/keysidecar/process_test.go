package main

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/fstest"
)

func environment(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func TestCheckEnvironment(t *testing.T) {
	for name, c := range map[string]struct {
		vars map[string]string
		code int
	}{
		"nothing":       {nil, exitDone},
		"other":         {map[string]string{"GODEBUG": "madvdontneed=1,http2server=0", "GOTRACEBACK": "all"}, exitDone},
		"off":           {map[string]string{"GODEBUG": "http2debug=0"}, exitDone},
		"http2debug=1":  {map[string]string{"GODEBUG": "http2debug=1"}, exitPermanent},
		"http2debug=2":  {map[string]string{"GODEBUG": "gctrace=1,http2debug=2,x=y"}, exitPermanent},
		"as part":       {map[string]string{"GODEBUG": "xhttp2debug=10"}, exitPermanent}, // the libraries look no closer
		"crash":         {map[string]string{"GOTRACEBACK": "crash"}, exitPermanent},
		"single is own": {map[string]string{"GOTRACEBACK": "single"}, exitDone},
		"Azure's log":   {map[string]string{"AZURE_SDK_GO_LOGGING": "all"}, exitPermanent},
		"Azure's is no": {map[string]string{"AZURE_SDK_GO_LOGGING": "no"}, exitDone},
		"gRPC's log":    {map[string]string{"GRPC_GO_LOG_SEVERITY_LEVEL": "info"}, exitPermanent},
		"GRPC'S LOG":    {map[string]string{"GRPC_GO_LOG_SEVERITY_LEVEL": "INFO"}, exitPermanent},
		"gRPC warns":    {map[string]string{"GRPC_GO_LOG_SEVERITY_LEVEL": "warning"}, exitPermanent},
		"GRPC WARNS":    {map[string]string{"GRPC_GO_LOG_SEVERITY_LEVEL": "WARNING"}, exitPermanent},
		"gRPC whispers": {map[string]string{"GRPC_GO_LOG_SEVERITY_LEVEL": "debug"}, exitPermanent},
		"gRPC's errors": {map[string]string{"GRPC_GO_LOG_SEVERITY_LEVEL": "error", "GRPC_GO_LOG_VERBOSITY_LEVEL": "99"}, exitDone},
		"GRPC'S ERRORS": {map[string]string{"GRPC_GO_LOG_SEVERITY_LEVEL": "ERROR"}, exitDone},
	} {
		t.Run(name, func(t *testing.T) {
			if code := codeOf(checkEnvironment(environment(c.vars))); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
		})
	}
}

func TestCgroupMemory(t *testing.T) {
	const own, mib = "proc/self/cgroup", int64(1 << 20)
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"no Linux":           {nil, math.MaxInt64},
		"cgroup v1":          {map[string]string{own: "4:memory:/a\n", "sys/fs/cgroup/memory.max": "1048576\n"}, math.MaxInt64},
		"container":          {map[string]string{own: "0::/\n", "sys/fs/cgroup/memory.max": "67108864\n"}, 64 * mib},
		"without a limit":    {map[string]string{own: "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, math.MaxInt64},
		"root has no file":   {map[string]string{own: "0::/\n"}, math.MaxInt64},
		"service":            {map[string]string{own: "0::/s/k\n", "sys/fs/cgroup/s/k/memory.max": "67108864\n"}, 64 * mib},
		"limit above":        {map[string]string{own: "0::/s/k\n", "sys/fs/cgroup/s/k/memory.max": "67108864\n", "sys/fs/cgroup/s/memory.max": "33554432\n"}, 32 * mib},
		"limit above is max": {map[string]string{own: "0::/s/k\n", "sys/fs/cgroup/s/k/memory.max": "67108864\n", "sys/fs/cgroup/s/memory.max": "max\n"}, 64 * mib},
		"both versions":      {map[string]string{own: "4:memory:/a\n0::/b\n", "sys/fs/cgroup/b/memory.max": "67108864\n"}, 64 * mib},
		"outside":            {map[string]string{own: "0::/../../x\n", "sys/fs/cgroup/memory.max": "67108864\n"}, 64 * mib},
		"nonsense":           {map[string]string{own: "0::/\n", "sys/fs/cgroup/memory.max": "64M\n"}, math.MaxInt64},
		"nothing at all":     {map[string]string{own: "0::/\n", "sys/fs/cgroup/memory.max": "0\n"}, math.MaxInt64},
	} {
		t.Run(name, func(t *testing.T) {
			if got := cgroupMemory(files(c.files)); got != c.want {
				t.Errorf("cgroupMemory is %d, want %d", got, c.want)
			}
		})
	}
}

func files(text map[string]string) fstest.MapFS {
	fsys := fstest.MapFS{}
	for name, text := range text {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return fsys
}

// known is what a process may use where only its GOMEMLIMIT says so.
func known(memory int64) int64 {
	if memory == math.MaxInt64 {
		return 0
	}
	return memory
}

// TestLimitRuntime sets limits of this process, and takes them back.
func TestLimitRuntime(t *testing.T) {
	procs, memory := runtime.GOMAXPROCS(0), debug.SetMemoryLimit(-1)
	limited := map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "10000000000\n"}
	for name, c := range map[string]struct {
		vars, files map[string]string
		procs       int // before
		want        runtimeLimits
	}{
		"many processors": {nil, nil, 8, runtimeLimits{2, memory, known(memory)}},
		"one processor":   {nil, nil, 1, runtimeLimits{1, memory, known(memory)}},
		"memory":          {nil, limited, 8, runtimeLimits{2, 8_000_000_000, 10_000_000_000}},
		"GOMAXPROCS":      {map[string]string{"GOMAXPROCS": "8"}, limited, 8, runtimeLimits{8, 8_000_000_000, 10_000_000_000}},
		"GOMEMLIMIT":      {map[string]string{"GOMEMLIMIT": "off"}, limited, 8, runtimeLimits{2, memory, 10_000_000_000}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() {
				runtime.GOMAXPROCS(procs)
				debug.SetMemoryLimit(memory)
			})
			runtime.GOMAXPROCS(c.procs)
			got := limitRuntime(environment(c.vars), files(c.files))
			if got != c.want {
				t.Errorf("limits are %+v, want %+v", got, c.want)
			}
			if now := (runtimeLimits{runtime.GOMAXPROCS(0), debug.SetMemoryLimit(-1), got.available}); now != got {
				t.Errorf("limits are %+v, but the runtime has %+v", got, now)
			}
		})
	}
}
