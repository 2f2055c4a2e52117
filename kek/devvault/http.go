package devvault

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/keysidecar/keysidecar/kek/devvault/internal/route"
	"github.com/keysidecar/keysidecar/kek/devvault/internal/state"
)

const (
	maxBody       = 64 << 10
	controlPrefix = "/devvault/"
	region        = "devlocal"
	serviceHeader = "1.9.0.0-devvault"
)

// call is one request to a vault.
type call struct {
	r     *http.Request
	id    string // x-ms-request-id
	vault string
	port  string // with its colon, as the client wrote it, or empty
	base  string // https://host:port, as the client wrote it
	route route.Route
	query url.Values
	body  []byte
}

// handle is the whole server.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	if !s.enter() {
		return
	}
	defer s.inflight.Done()
	id := state.NewUUID()
	h := w.Header()
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Ms-Request-Id", id)
	if strings.HasPrefix(r.URL.Path, controlPrefix) {
		s.control(w, r)
		return
	}
	h.Set("X-Ms-Keyvault-Region", region)
	h.Set("X-Ms-Keyvault-Service-Version", serviceHeader)
	if v := r.Header.Get("X-Ms-Client-Request-Id"); v != "" {
		h.Set("X-Ms-Client-Request-Id", v)
	}
	s.serveVault(w, r, id)
}

// serveVault checks, in Azure's order, that the vault exists, the token, and
// only then the request itself.
func (s *Server) serveVault(w http.ResponseWriter, r *http.Request, id string) {
	vault, port, ok := state.SplitHost(r.Host, s.suffix)
	if !ok || !s.state.Keys.HasVault(vault) {
		s.counters.add(CountUnknownVault)
		fail(w, state.VaultNotFound(r.Host))
		return
	}
	c := &call{r: r, id: id, vault: vault, port: port, base: "https://" + strings.ToLower(r.Host)}
	var routeErr error
	c.route, routeErr = route.Parse(r.Method, r.URL.EscapedPath())
	if header := r.Header.Get("Authorization"); !s.state.Tokens.Valid(header) {
		s.challenge(w, c, header)
		return
	}
	s.counters.add(c.route.Op)
	f := s.faults.take(c, false)
	err := s.prepare(w, c, routeErr)
	if f != nil {
		s.serveFaulty(w, c, f, err)
		return
	}
	var reply any
	if err == nil {
		reply, err = s.dispatch(c)
	}
	s.finish(w, c, reply, err)
}

// prepare reads and checks what all operations share. The body is read before
// anything can wait, since only then net/http notices a client that hangs up.
func (s *Server) prepare(w http.ResponseWriter, c *call, routeErr error) error {
	var err error
	c.body, err = io.ReadAll(http.MaxBytesReader(w, c.r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return &Error{
			Status: http.StatusRequestEntityTooLarge, Code: "BadParameter",
			Message: "The request body is too large.",
		}
	case err != nil:
		return state.BadParameter("The request body could not be read.")
	}
	if c.query, err = url.ParseQuery(c.r.URL.RawQuery); err != nil {
		return state.BadParameter("The query string is malformed.")
	}
	if c.query.Get("api-version") == "" {
		return state.BadParameter("api-version must be specified")
	}
	return routeErr
}

// finish answers and counts what the vault itself decided.
func (s *Server) finish(w http.ResponseWriter, c *call, reply any, err error) {
	status := http.StatusOK
	if err != nil {
		e := state.AsError(err)
		status = e.Status
		s.reject(c, err)
		fail(w, e)
	} else {
		writeReply(w, reply)
	}
	s.log.LogAttrs(c.r.Context(), slog.LevelDebug, "vault answered",
		slog.String("vault", c.vault), slog.String("op", c.route.Op), slog.String("key", c.route.Name),
		slog.Int("status", status), slog.String("request_id", c.id))
}

// reject counts a refusal and logs what is not one.
func (s *Server) reject(c *call, err error) {
	if state.AsError(err).Status < http.StatusInternalServerError {
		s.counters.add(CountRejected)
		return
	}
	s.log.LogAttrs(c.r.Context(), slog.LevelError, "vault could not do what it was asked",
		slog.String("op", c.route.Op), slog.String("request_id", c.id), slog.Any("error", err))
}

// challenge answers 401. Its header is exactly Azure's, because clients parse
// it by hand: a space after the comma, a path with the tenant, the parent
// domain with the port.
func (s *Server) challenge(w http.ResponseWriter, c *call, header string) {
	e := &Error{
		Status: http.StatusUnauthorized, Code: "Unauthorized",
		Message: "AKV10000: Request is missing a Bearer or PoP token.",
	}
	if header == "" {
		s.counters.add(CountChallenge)
	} else {
		s.counters.add(CountBadToken)
		e.Message = "AKV10046: Unable to validate the token."
	}
	kind := FaultKind("")
	if f := s.faults.take(c, true); f != nil {
		s.counters.add(CountFaulted)
		kind = f.Kind
	}
	if v := s.challengeHeader(c.port, kind); v != "" {
		w.Header().Set("WWW-Authenticate", v)
	}
	fail(w, e)
}

// challengeHeader returns the WWW-Authenticate header, spoilt by kind unless
// that is empty.
func (s *Server) challengeHeader(port string, kind FaultKind) string {
	authority, tenant, sep := "https://login.microsoftonline.com", "/"+s.state.EntraTenant, ", "
	resource := "https://" + s.suffix + port
	switch kind {
	case FaultChallengeMissing:
		return ""
	case FaultChallengeNoPath:
		tenant = ""
	case FaultChallengeNoTenant:
		tenant = "/"
	case FaultChallengeNoSpace:
		sep = ","
	case FaultChallengeAuthority:
		authority = "https://login.attacker.example"
	case FaultChallengeTenant:
		tenant = "/00000000-0000-4000-8000-000000000bad"
	case FaultChallengeResource:
		resource = "https://vault.attacker.example"
	}
	return `Bearer authorization="` + authority + tenant + `"` + sep + `resource="` + resource + `"`
}

// fail answers an error in Azure's form.
func fail(w http.ResponseWriter, err error) {
	e := state.AsError(err)
	writeJSON(w, e.Status, errorReplyOf(e))
}

// writeReply answers success; nil is 204.
func writeReply(w http.ResponseWriter, reply any) {
	if reply == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	writeJSON(w, http.StatusOK, reply)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		panic("devvault: internal error: encoding reply: " + err.Error())
	}
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(raw)))
	w.WriteHeader(status)
	_, _ = w.Write(raw) // the client may be gone
}

// reset drops the request's TCP connection without a goodbye, and with it, on
// HTTP/2, the other requests that share it: what a dying vault does.
func reset(r *http.Request) {
	conn, _ := r.Context().Value(connKey{}).(net.Conn)
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if t, ok := conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	if conn != nil {
		_ = conn.Close()
	}
}
