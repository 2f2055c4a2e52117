package floor

// Second returns T(2) of the last message.
func (p *Parts) Second() []byte { return p.second[:] }
