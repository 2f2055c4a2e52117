package devvault

import "net/http"

// Handle serves a request without a connection.
func (s *Server) Handle(w http.ResponseWriter, r *http.Request) { s.handle(w, r) }
