package tenant

import "os"

// Made returns how many entries made from prefix rules are kept.
func (d *Directory) Made() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.made.Len()
}

// CheckOwner is checkOwner.
var CheckOwner = checkOwner

// OpenSuspensionsWith is OpenSuspensions with another fsync.
var OpenSuspensionsWith = openSuspensions

// SetSync replaces fsync.
func (s *Suspensions) SetSync(sync func(*os.File) error) { s.dir.sync = sync }

// SetAll puts all in effect without keeping it.
func (s *Suspensions) SetAll(all []Suspension) { s.all.Store(new(byID(all))) }

// EncodeSuspensions returns the state file of all.
func EncodeSuspensions(all []Suspension) []byte { return encodeSuspensions(byID(all)) }

// DecodeSuspensions returns what a state file says, by tenant ID.
func DecodeSuspensions(raw []byte) ([]Suspension, error) {
	all, err := decodeSuspensions(raw)
	if err != nil && all != nil {
		panic("package: internal error: suspensions came with an error")
	}
	return sorted(all), err
}

func byID(all []Suspension) map[ID]Suspension {
	m := make(map[ID]Suspension, len(all))
	for _, x := range all {
		m[x.Tenant] = x
	}
	return m
}
