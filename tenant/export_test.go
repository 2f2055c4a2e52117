package tenant

// Made returns how many entries made from prefix rules are kept.
func (d *Directory) Made() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.made.Len()
}
