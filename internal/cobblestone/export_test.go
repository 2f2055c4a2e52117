package cobblestone

import "reflect"

// MaxChunks is the greatest number of chunks of a message.
const MaxChunks = maxChunks

// SkipTo makes w continue at the given chunk.
func (w *Writer) SkipTo(chunk uint64) { w.chunks.next = chunk }

// SkipTo makes r continue at the given chunk.
func (r *Reader) SkipTo(chunk uint64) { r.chunks.next = chunk }

// Buffer returns w's buffer.
func (w *Writer) Buffer() []byte { return w.buf[:] }

// HasKeys reports whether w still holds the message's keys.
func (w *Writer) HasKeys() bool { return w.chunks != sequence{} }

// Buffer returns r's buffer.
func (r *Reader) Buffer() []byte { return r.buf[:] }

// HasKeys reports whether r still holds the message's keys.
func (r *Reader) HasKeys() bool { return r.chunks != sequence{} }

// IsPoolBlank reports whether the deriver that the next call will use is as good as
// new: no byte in it, its digest included, comes from an earlier message.
func IsPoolBlank() bool {
	d := newDeriver()
	defer derivers.Put(d)
	return reflect.DeepEqual(d, makeDeriver())
}

// ReleaseBlanks reports whether a deriver in use differs from a new one, in what it
// derived and in its digest, and no longer does after its release.
func ReleaseBlanks(key *[KeySize]byte, context []byte) (used, blank bool) {
	d, fresh := makeDeriver(), makeDeriver()
	d.derive(key, context)
	d.newSequence().seal(nil, context)
	used = d.keys.okm != fresh.keys.okm && !reflect.DeepEqual(d.digest, fresh.digest)
	d.release()
	return used, reflect.DeepEqual(d, fresh)
}
