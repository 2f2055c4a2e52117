package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Key is one named key with all its versions. A Key and everything in it never
// changes: a change makes another.
type Key struct {
	// Name is as first created; it is looked up without regard to case.
	Name string
	// Versions are in order of creation, at least one.
	Versions []*Version
	// Deleted is when it was softly deleted in Unix seconds, or 0.
	Deleted int64
	// Policy is the rotation policy that was set, or nil.
	Policy json.RawMessage
}

// Version is one version of a key. Times are in Unix seconds.
type Version struct {
	ID      string // 32 hex digits
	Enabled bool
	// NotBefore and Expires bound wrapping; 0 means no bound.
	NotBefore, Expires int64
	Created, Updated   int64
	Ops                []string // the allowed key_ops
	Tags               map[string]string

	material *material
}

// Newest returns the version created last, enabled or not, as Azure does.
func (k *Key) Newest() *Version { return k.Versions[len(k.Versions)-1] }

// Find returns the version named id; "" names the newest.
func (k *Key) Find(id string) (*Version, error) {
	if id == "" {
		return k.Newest(), nil
	}
	for _, v := range k.Versions {
		if v.ID == id {
			return v, nil
		}
	}
	return nil, keyNotFound(k.Name + "/" + id)
}

// append returns a copy of k with v as its newest version, created now. The
// order of creation is the order of the versions: clients that sort by the
// whole seconds of created must not find another, even if the clock went back.
func (k *Key) append(v *Version, now int64) *Key {
	if len(k.Versions) > 0 {
		now = max(now, k.Newest().Created)
	}
	v.Created, v.Updated = now, now
	c := *k
	c.Versions = append(slices.Clone(k.Versions), v)
	return &c
}

// replace returns a copy of k with v in the place of old.
func (k *Key) replace(old, v *Version) *Key {
	c := *k
	c.Versions = slices.Clone(k.Versions)
	c.Versions[slices.Index(c.Versions, old)] = v
	return &c
}

// Store keeps vaults and keys, in memory and in one file per key. A change is
// durable before it is visible.
type Store struct {
	dir string
	now func() time.Time

	// change is held over a change with its write to disk, so that changes
	// follow one another.
	change sync.Mutex
	// mu guards the maps; it is held only to look something up or to publish.
	mu     sync.RWMutex
	vaults map[string]map[string]*Key
}

// openStore loads every key below dir.
func openStore(dir string, now func() time.Time) (*Store, error) {
	st := &Store{dir: dir, now: now, vaults: map[string]map[string]*Key{}}
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading vaults: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || !validVault(e.Name()) {
			return nil, fmt.Errorf("%s is not a vault", filepath.Join(dir, e.Name()))
		}
		if st.vaults[e.Name()], err = loadVault(filepath.Join(dir, e.Name())); err != nil {
			return nil, err
		}
	}
	return st, nil
}

func loadVault(dir string) (map[string]*Key, error) {
	if err := removeTemps(dir); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading vault: %w", err)
	}
	keys := make(map[string]*Key, len(entries))
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading key file: %w", err)
		}
		k, err := decodeKey(raw)
		if err != nil {
			return nil, fmt.Errorf("parsing key file %s: %w", path, err)
		}
		if keyFileName(k.Name) != e.Name() {
			return nil, fmt.Errorf("key file %s holds key %q", path, k.Name)
		}
		keys[strings.ToLower(k.Name)] = k
	}
	return keys, nil
}

func keyFileName(name string) string { return strings.ToLower(name) + ".json" }

// HasVault reports whether a vault was created.
func (st *Store) HasVault(vault string) bool {
	st.mu.RLock()
	defer st.mu.RUnlock()
	_, ok := st.vaults[vault]
	return ok
}

// Vaults returns the names of all vaults, in order.
func (st *Store) Vaults() []string {
	st.mu.RLock()
	defer st.mu.RUnlock()
	names := make([]string, 0, len(st.vaults))
	for v := range st.vaults {
		names = append(names, v)
	}
	slices.Sort(names)
	return names
}

// CreateVault makes a vault without keys. An existing one is left as it is.
func (st *Store) CreateVault(vault string) error {
	if !validVault(vault) {
		return BadParameter("Vault name %q is not 3 to 24 of a-z, 0-9 and single hyphens, "+
			"beginning with a letter.", vault)
	}
	st.change.Lock()
	defer st.change.Unlock()
	if st.HasVault(vault) {
		return nil
	}
	if err := makeDir(filepath.Join(st.dir, vault)); err != nil {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.vaults[vault] = map[string]*Key{}
	return nil
}

// raw returns a key in whatever state, or nil.
func (st *Store) raw(vault, name string) *Key {
	st.mu.RLock()
	defer st.mu.RUnlock()
	return st.vaults[vault][strings.ToLower(name)]
}

// Live returns a key that is not deleted.
func (st *Store) Live(vault, name string) (*Key, error) {
	k := st.raw(vault, name)
	if k == nil || k.Deleted != 0 {
		return nil, keyNotFound(name)
	}
	return k, nil
}

// Dead returns a key that is softly deleted.
func (st *Store) Dead(vault, name string) (*Key, error) {
	k := st.raw(vault, name)
	if k == nil || k.Deleted == 0 {
		return nil, deletedKeyNotFound(name)
	}
	return k, nil
}

// List returns the keys of a vault by name, the deleted or the others.
func (st *Store) List(vault string, deleted bool) []*Key {
	st.mu.RLock()
	defer st.mu.RUnlock()
	var keys []*Key
	for _, k := range st.vaults[vault] {
		if (k.Deleted != 0) == deleted {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b *Key) int { return strings.Compare(a.SortName(), b.SortName()) })
	return keys
}

// SortName is the name by which lists of keys are ordered.
func (k *Key) SortName() string { return strings.ToLower(k.Name) }

// update replaces a key by f's result: f gets nil if there is none, and
// returns nil to have it removed for good.
func (st *Store) update(vault, name string, f func(*Key) (*Key, error)) (*Key, error) {
	st.change.Lock()
	defer st.change.Unlock()
	if !st.HasVault(vault) {
		return nil, VaultNotFound(vault)
	}
	k, err := f(st.raw(vault, name))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(st.dir, vault, keyFileName(name))
	if k == nil {
		err = removeFile(path)
	} else {
		err = saveKey(path, k)
	}
	if err != nil {
		return nil, err
	}
	st.publish(vault, strings.ToLower(name), k)
	return k, nil
}

func (st *Store) publish(vault, name string, k *Key) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if k == nil {
		delete(st.vaults[vault], name)
		return
	}
	st.vaults[vault][name] = k
}

// keyFile is a key on disk.
type keyFile struct {
	Format   int             `json:"format"`
	Name     string          `json:"name"`
	Deleted  int64           `json:"deleted,omitempty"`
	Policy   json.RawMessage `json:"rotation_policy,omitempty"`
	Versions []versionFile   `json:"versions"`
}

type versionFile struct {
	ID       string            `json:"id"`
	Type     string            `json:"type"`
	Material []byte            `json:"material"`
	Enabled  bool              `json:"enabled"`
	NBF      int64             `json:"nbf,omitempty"`
	EXP      int64             `json:"exp,omitempty"`
	Created  int64             `json:"created"`
	Updated  int64             `json:"updated"`
	Ops      []string          `json:"ops"`
	Tags     map[string]string `json:"tags,omitempty"`
}

func saveKey(path string, k *Key) error {
	f := keyFile{Format: fileFormat, Name: k.Name, Deleted: k.Deleted, Policy: k.Policy}
	for _, v := range k.Versions {
		m, err := v.material.encode()
		if err != nil {
			return fmt.Errorf("encoding key: %w", err)
		}
		f.Versions = append(f.Versions, versionFile{
			ID: v.ID, Type: v.Type(), Material: m, Enabled: v.Enabled, NBF: v.NotBefore, EXP: v.Expires,
			Created: v.Created, Updated: v.Updated, Ops: v.Ops, Tags: v.Tags,
		})
	}
	raw, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encoding key: %w", err)
	}
	return writeFile(path, raw)
}

func decodeKey(raw []byte) (*Key, error) {
	var f keyFile
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, err
	}
	if f.Format != fileFormat {
		return nil, fmt.Errorf("format is %d, not %d", f.Format, fileFormat)
	}
	if !ValidKeyName(f.Name) || len(f.Versions) == 0 {
		return nil, errors.New("key has no proper name or no version")
	}
	k := &Key{Name: f.Name, Deleted: f.Deleted, Policy: f.Policy}
	for _, vf := range f.Versions {
		m, err := decodeMaterial(vf.Type, vf.Material)
		if err != nil {
			return nil, err
		}
		if !ValidVersion(vf.ID) {
			return nil, fmt.Errorf("version %q is not 32 hex digits", vf.ID)
		}
		k.Versions = append(k.Versions, &Version{
			ID: vf.ID, material: m, Enabled: vf.Enabled, NotBefore: vf.NBF, Expires: vf.EXP,
			Created: vf.Created, Updated: vf.Updated, Ops: vf.Ops, Tags: vf.Tags,
		})
	}
	return k, nil
}
