package audit_test

import (
	"context"
	"log/slog"
	"os"
	"testing"

	"github.com/keysidecar/keysidecar/audit"
	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/segments"
)

// BenchmarkAppend is records of calls by 64 callers at a time: synced before
// Append returns, and soon after.
func BenchmarkAppend(b *testing.B) {
	for _, soon := range []bool{false, true} {
		name := "synced"
		if soon {
			name = "soon"
		}
		b.Run(name, func(b *testing.B) {
			path := b.TempDir()
			if err := os.Chmod(path, 0o700); err != nil {
				b.Fatal(err)
			}
			dir, err := segments.Open(segments.Config{Path: path, Log: origin, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			cfg := audit.Config{Log: origin, Sink: dir, Logger: slog.New(slog.DiscardHandler)}
			if soon {
				cfg.WriteSoon, cfg.Sync = dir.WriteSoon, dir.Sync
			}
			l, err := audit.New(cfg, &record.Event{})
			if err != nil {
				b.Fatal(err)
			}
			b.SetParallelism(32)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					e := record.Event{
						Kind: record.Call, Caller: "orders", Identity: "uid:10001/gid:10001", PID: 4711, Tenant: "acme", Verb: "unseal",
						Result: "OK", Request: "ABCDEFGHIJ-1a2b", Bytes: 1024, DEK: "bfbc1c06ef953dc1713df78b43b24f38", KEK: "acme",
						KEKVersion: "569b449d43f81c4a216957f96bb34e44", Region: "westeurope",
					}
					if err := l.Append(context.Background(), record.Data, &e); err != nil {
						b.Error(err)
						return
					}
				}
			})
			if err := l.Close(context.Background()); err != nil {
				b.Error(err)
			}
		})
	}
}
