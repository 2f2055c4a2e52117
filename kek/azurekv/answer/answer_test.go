package answer_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/azurekv/answer"
)

func errorBody(code, inner string) string {
	if inner == "" {
		return fmt.Sprintf(`{"error":{"code":%q,"message":"text"}}`, code)
	}
	return fmt.Sprintf(`{"error":{"code":%q,"message":"text","innererror":{"code":%q}}}`, code, inner)
}

func TestReason(t *testing.T) {
	const html = "<html>Forbidden</html>"
	for _, test := range []struct {
		name       string
		op         string
		status     int
		challenged bool
		body       string
		want       kek.Reason
		code       string
	}{
		{"bad ciphertext", "unwrap", 400, false, errorBody("BadParameter", ""), kek.Rejected, "BadParameter"},
		{"bad ciphertext, inner code", "unwrap", 400, false, errorBody("BadParameter", "Inner"), kek.Rejected, "Inner"},
		{"other 400", "unwrap", 400, false, errorBody("UnsupportedApiVersion", ""), kek.Unreachable, "UnsupportedApiVersion"},
		{"400 of a proxy", "unwrap", 400, false, html, kek.Unreachable, ""},
		{"bad wrap", "wrap", 400, false, errorBody("BadParameter", ""), kek.Unusable, "BadParameter"},
		{"bad sign", "sign", 400, false, errorBody("BadParameter", ""), kek.Unusable, "BadParameter"},
		{"disabled signer", "sign", 403, false, errorBody("Forbidden", "KeyDisabled"), kek.Disabled, "KeyDisabled"},
		{"bad get", "newest", 400, false, errorBody("BadParameter", ""), kek.Unusable, "BadParameter"},
		{"token refused", "unwrap", 401, true, "", kek.Forbidden, ""},
		{"token refused, no challenge", "unwrap", 401, false, errorBody("Unauthorized", ""), kek.Forbidden, "Unauthorized"},
		{"401 of a proxy", "unwrap", 401, false, html, kek.Unreachable, ""},
		{"disabled", "unwrap", 403, false, errorBody("Forbidden", "KeyDisabled"), kek.Disabled, "KeyDisabled"},
		{"expired", "wrap", 403, false, errorBody("Forbidden", "KeyExpired"), kek.Disabled, "KeyExpired"},
		{"not yet valid", "wrap", 403, false, errorBody("Forbidden", "KeyNotYetValid"), kek.Disabled, "KeyNotYetValid"},
		{"no role", "unwrap", 403, false, errorBody("Forbidden", "ForbiddenByRbac"), kek.Forbidden, "ForbiddenByRbac"},
		{"no access policy", "unwrap", 403, false, errorBody("Forbidden", "AccessDenied"), kek.Forbidden, "AccessDenied"},
		{"unknown 403", "unwrap", 403, false, errorBody("Forbidden", ""), kek.Forbidden, "Forbidden"},
		{"firewall", "unwrap", 403, false, errorBody("Forbidden", "ForbiddenByFirewall"), kek.Unreachable, "ForbiddenByFirewall"},
		{"private link", "unwrap", 403, false, errorBody("Forbidden", "ForbiddenByConnection"), kek.Unreachable, "ForbiddenByConnection"},
		{"403 of a proxy", "unwrap", 403, false, html, kek.Unreachable, ""},
		{"key_ops", "unwrap", 403, false, errorBody("Forbidden", "KeyOperationForbidden"), kek.Unusable, "KeyOperationForbidden"},
		{"no key", "unwrap", 404, false, errorBody("KeyNotFound", ""), kek.NotFound, "KeyNotFound"},
		{"404 of a proxy", "unwrap", 404, false, html, kek.Unreachable, ""},
		{"other 404", "unwrap", 404, false, errorBody("NotFound", ""), kek.Unreachable, "NotFound"},
		{"conflict", "unwrap", 409, false, errorBody("Conflict", ""), kek.Unreachable, "Conflict"},
		{"throttled", "unwrap", 429, false, errorBody("Throttled", ""), kek.Throttled, "Throttled"},
		{"throttled by a proxy", "unwrap", 429, false, html, kek.Throttled, ""},
		{"server error with a refusal's code", "unwrap", 500, false, errorBody("KeyNotFound", "KeyDisabled"), kek.Unreachable, "KeyDisabled"},
		{"redirect", "unwrap", 307, false, "", kek.Unreachable, ""},
		{"code that is no token", "unwrap", 403, false, errorBody("Forbidden", "a b\n"), kek.Forbidden, "Forbidden"},
		{"code that is long enough for a DEK", "unwrap", 403, false, errorBody("Forbidden", strings.Repeat("k", 43)), kek.Forbidden, "Forbidden"},
		{"deep code", "unwrap", 403, false, `{"error":{"code":"a","innererror":{"code":"b","innererror":{"code":"KeyDisabled"}}}}`, kek.Disabled, "KeyDisabled"},
	} {
		t.Run(test.name, func(t *testing.T) {
			header := make(http.Header)
			if test.challenged {
				header.Set("WWW-Authenticate", "Bearer")
			}
			f := answer.NewFault(test.status, header, []byte(test.body), time.Now())
			reason := f.Reason(test.op == "unwrap")
			if reason != test.want || f.Code != test.code || f.Status != test.status {
				t.Errorf("got %d, %s, %q, want %s, %q", f.Status, reason, f.Code, test.want, test.code)
			}
		})
	}
}

func FuzzErrorCodes(f *testing.F) {
	f.Add([]byte(errorBody("Forbidden", "KeyDisabled")))
	f.Add([]byte(strings.Repeat(`{"error":{"innererror":`, 20)))
	f.Fuzz(func(t *testing.T, body []byte) {
		outer, inner := answer.ErrorCodes(body)
		for _, code := range []string{outer, inner} {
			if len(code) > 40 || strings.ContainsAny(code, " \n\"<") {
				t.Errorf("code %q", code)
			}
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	header := func(pairs ...string) http.Header {
		h := make(http.Header)
		for i := 0; i < len(pairs); i += 2 {
			h.Set(pairs[i], pairs[i+1])
		}
		return h
	}
	for _, test := range []struct {
		name string
		h    http.Header
		want time.Duration
	}{
		{"none", nil, 0},
		{"seconds", header("Retry-After", "7"), 7 * time.Second},
		{"milliseconds", header("retry-after-ms", "150"), 150 * time.Millisecond},
		{"Azure's milliseconds", header("x-ms-retry-after-ms", "150"), 150 * time.Millisecond},
		{"order", header("Retry-After", "7", "x-ms-retry-after-ms", "2", "retry-after-ms", "1"), time.Millisecond},
		{"next when one is bad", header("retry-after-ms", "x", "Retry-After", "7"), 7 * time.Second},
		{"date", header("Retry-After", "Sun, 22 Nov 2026 03:00:09 GMT"), 9 * time.Second},
		{"past date", header("Retry-After", "Sun, 22 Nov 2026 02:00:00 GMT"), 0},
		{"date in milliseconds", header("retry-after-ms", "Sun, 22 Nov 2026 03:00:09 GMT"), 0},
		{"zero", header("Retry-After", "0"), 0},
		{"negative", header("Retry-After", "-5"), 0},
		{"fraction", header("Retry-After", "1.5"), 0},
		{"much too long", header("Retry-After", "4294967295"), time.Hour},
		{"overflow", header("Retry-After", "99999999999999999999"), 0},
		{"date too far", header("Retry-After", "Sun, 22 Nov 2099 03:00:09 GMT"), time.Hour},
	} {
		if got := answer.RetryAfter(test.h, now); got != test.want {
			t.Errorf("%s: got %s, want %s", test.name, got, test.want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("7", "150", "")
	f.Add("Sun, 22 Nov 2026 03:00:09 GMT", "", "x")
	now := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, seconds, ms, azure string) {
		h := http.Header{"Retry-After": {seconds}, "Retry-After-Ms": {ms}, "X-Ms-Retry-After-Ms": {azure}}
		if d := answer.RetryAfter(h, now); d < 0 || d > time.Hour {
			t.Errorf("got %s", d)
		}
	})
}
