package envelope

// Encoded returns the canonical encoding of c, for comparison with the vectors.
func (c Context) Encoded() []byte { return c.append(nil) }
