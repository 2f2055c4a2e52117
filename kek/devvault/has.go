package devvault

// HasKey reports whether a vault has a key of that name which is not deleted.
func (s *Server) HasKey(vault, name string) bool {
	_, err := s.state.Keys.Live(vault, name)
	return err == nil
}
