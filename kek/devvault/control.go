package devvault

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/keysidecar/keysidecar/kek/devvault/internal/route"
	"github.com/keysidecar/keysidecar/kek/devvault/internal/state"
)

// faultJSON is a Fault in the control API. Durations are Go's ("1.5s").
type faultJSON struct {
	ID         int       `json:"id,omitempty"`
	Kind       FaultKind `json:"kind"`
	Vault      string    `json:"vault,omitempty"`
	Key        string    `json:"key,omitempty"`
	Op         string    `json:"op,omitempty"`
	Skip       int       `json:"skip,omitempty"`
	Count      int       `json:"count,omitempty"`
	Status     int       `json:"status,omitempty"`
	RetryAfter duration  `json:"retry_after,omitzero"`
	Delay      duration  `json:"delay,omitzero"`
}

// duration travels as Go writes it: "250ms".
type duration time.Duration

// MarshalText writes d as "250ms".
func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration does.
func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = duration(v)
	return err
}

// control serves the control API of the package comment.
func (s *Server) control(w http.ResponseWriter, r *http.Request) {
	if !s.state.Tokens.Admin(r.Header.Get("Authorization")) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="devvault"`)
		fail(w, &Error{
			Status: http.StatusUnauthorized, Code: "Unauthorized",
			Message: "The control API takes the token of the token file only.",
		})
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		fail(w, state.BadParameter("The request body could not be read."))
		return
	}
	reply, err := s.controlOp(r.Method, strings.TrimPrefix(r.URL.Path, controlPrefix), body)
	if err != nil {
		fail(w, err)
		return
	}
	writeReply(w, reply)
}

func (s *Server) controlOp(method, path string, body []byte) (any, error) {
	what, arg, _ := strings.Cut(path, "/")
	switch method + " " + what {
	case "GET counters":
		return s.Counters(), nil
	case "DELETE counters":
		s.ResetCounters()
		return nil, nil
	case "GET faults":
		return map[string]any{"faults": s.faultList()}, nil
	case "POST faults":
		return s.postFault(body)
	case "DELETE faults":
		return nil, s.deleteFaults(arg)
	case "POST tokens":
		return s.postToken(body)
	case "DELETE tokens":
		s.RevokeTokens()
		return nil, nil
	case "GET vaults":
		return map[string]any{"vaults": s.state.Keys.Vaults()}, nil
	case "PUT vaults":
		return nil, s.CreateVault(arg)
	}
	return nil, route.NotFound()
}

func (s *Server) faultList() []faultJSON {
	out := []faultJSON{}
	for _, p := range s.faults.snapshot() {
		f := p.fault
		out = append(out, faultJSON{
			ID: p.id, Kind: f.Kind, Vault: f.Vault, Key: f.Key, Op: f.Op, Skip: p.skip, Count: max(0, p.left),
			Status: f.Status, RetryAfter: duration(f.RetryAfter), Delay: duration(f.Delay),
		})
	}
	return out
}

func (s *Server) postFault(body []byte) (any, error) {
	var f faultJSON
	if err := decodeStrict(body, &f); err != nil {
		return nil, err
	}
	id, err := s.Inject(Fault{
		Kind: f.Kind, Vault: f.Vault, Key: f.Key, Op: f.Op, Skip: f.Skip, Count: f.Count,
		Status: f.Status, RetryAfter: time.Duration(f.RetryAfter), Delay: time.Duration(f.Delay),
	})
	return map[string]int{"id": id}, err
}

func (s *Server) deleteFaults(arg string) error {
	if arg == "" {
		s.ClearFaults()
		return nil
	}
	id, err := strconv.Atoi(arg)
	if err != nil || id <= 0 {
		return state.BadParameter("Fault id %q is not a positive number.", arg)
	}
	s.ClearFault(id)
	return nil
}

func (s *Server) postToken(body []byte) (any, error) {
	var req struct {
		ExpiresIn int64 `json:"expires_in"`
	}
	if err := decodeStrict(body, &req); err != nil {
		return nil, err
	}
	if req.ExpiresIn < 1 || req.ExpiresIn > 24*60*60 {
		return nil, state.BadParameter("expires_in must be 1 to 86400 seconds.")
	}
	return map[string]any{
		"access_token": s.IssueToken(time.Duration(req.ExpiresIn) * time.Second),
		"token_type":   "Bearer", "expires_in": req.ExpiresIn,
	}, nil
}

// decodeStrict refuses unknown members: a misspelt fault would inject another.
func decodeStrict(body []byte, v any) error {
	d := json.NewDecoder(strings.NewReader(string(body)))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return state.BadParameter("The request body is not what the operation takes: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return state.BadParameter("The request body has something after its object.")
	}
	return nil
}
