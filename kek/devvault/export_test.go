package devvault

import "net/http"

// ParseRoute returns the parts of a route.
func ParseRoute(method, path string) (op, name, version string, err error) {
	r, err := parseRoute(method, path)
	return r.op, r.name, r.version, err
}

// Handle serves a request without a connection.
func (s *Server) Handle(w http.ResponseWriter, r *http.Request) { s.handle(w, r) }
