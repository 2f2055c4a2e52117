package server_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server"
)

// record is a line of the log.
type record struct {
	Level, Msg, Method, Code, Reason, Tenant, Error string
	RequestID                                       string `json:"request_id"`
	Duration                                        int64
}

func records(t *testing.T, s *running) []record {
	t.Helper()
	var rs []record
	for line := range bytes.Lines([]byte(s.log.String())) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("log line %s: %v", line, err)
		}
		rs = append(rs, r)
	}
	return rs
}

func TestLog(t *testing.T) {
	const method = "/keysidecar.v1.SealService/Seal"
	cause := errors.New("vault says no")
	for name, c := range map[string]struct {
		level  slog.Level
		err    error
		tenant string
		want   []record
	}{
		"success":          {slog.LevelInfo, nil, "acme", nil},
		"success at debug": {slog.LevelDebug, nil, "acme", []record{{Level: "DEBUG", Code: "OK", Tenant: "acme"}}},
		"refusal": {slog.LevelInfo, sealerError(sealer.KEKDisabled, cause), "acme", []record{{
			Level: "WARN", Code: "FailedPrecondition", Reason: "KEK_DISABLED", Tenant: "acme",
			Error: "KEK_DISABLED\nvault says no",
		}}},
		"caller's mistake": {slog.LevelInfo, &sealer.Error{Reason: sealer.InvalidTenant}, "no\ntenant", []record{{
			Level: "INFO", Code: "InvalidArgument", Reason: "INVALID_TENANT", Error: "INVALID_TENANT",
		}}},
		"not below the level": {slog.LevelWarn, &sealer.Error{Reason: sealer.InvalidTenant}, "acme", nil},
		"internal": {slog.LevelError, cause, "acme", []record{{
			Level: "ERROR", Code: "Internal", Reason: "INTERNAL", Tenant: "acme", Error: "vault says no",
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			log := &journal{}
			s := start(t, failing(c.err), func(cfg *server.Config) {
				cfg.Logger = slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: c.level}))
			})
			s.log = log
			_, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{
				Tenant: c.tenant, Plaintext: []byte("PAYLOAD"), EncryptionContext: map[string]string{"KEY": "VALUE"},
			})
			if (err == nil) != (c.err == nil) {
				t.Fatal(err)
			}
			got := records(t, s)
			for i, r := range got {
				if !isRequestID(r.RequestID) || r.Duration <= 0 || r.Msg != "call finished" || r.Method != method {
					t.Errorf("record is %+v", r)
				}
				got[i].RequestID, got[i].Duration, got[i].Msg, got[i].Method = "", 0, "", ""
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
			for _, s := range []string{"PAYLOAD", "KEY\"", "VALUE", "no\\ntenant"} {
				if strings.Contains(log.String(), s) {
					t.Errorf("log has %q: %s", s, log)
				}
			}
		})
	}
}

func TestRequestIDsDiffer(t *testing.T) {
	s := start(t, failing(&sealer.Error{Reason: sealer.InvalidTenant}), nil)
	var ids []string
	for range 3 {
		ids = append(ids, seen(t, s, &keysidecarv1.UnsealRequest{}).RequestID)
	}
	slices.Sort(ids)
	if len(slices.Compact(ids)) != 3 {
		t.Errorf("request ids are %q", ids)
	}
}
