package secret

import "slices"

// NewAt returns a slab at exactly level, or ErrLevel.
func NewAt(level Level, slots int) (*Slab, error) {
	at := slices.DeleteFunc(grades(), func(g grade) bool { return g.level != level })
	return newSlab(Config{Slots: slots, Require: level}, at)
}

// NewWithout returns what New does where the kernel refuses the levels in
// refused with err.
func NewWithout(cfg Config, err error, refused ...Level) (*Slab, error) {
	gs := grades()
	for i, g := range gs {
		if slices.Contains(refused, g.level) {
			gs[i].alloc = func(int) (*region, error) { return nil, err }
		}
	}
	return newSlab(cfg, gs)
}

// Memory returns the slab's whole memory.
func (s *Slab) Memory() []byte { return s.mem.b }

// Slot returns the slot's bytes whatever its state.
func (k *Key) Slot() *[Size]byte { return k.slab.mem.slot(k.index) }

// BeforeUnmap calls f with the wiped memory just before Close gives it back,
// so that a test sees what is left.
func (s *Slab) BeforeUnmap(f func(b []byte)) {
	free := s.mem.free
	s.mem.free = func(b []byte) error {
		f(b)
		if free == nil {
			return nil
		}
		return free(b)
	}
}
