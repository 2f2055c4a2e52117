package cobblestone

import (
	"crypto/subtle"
	"io"
)

// maxEmptyReads is how often an underlying reader may return neither bytes nor an
// error before a Reader gives up with io.ErrNoProgress, as in package bufio.
const maxEmptyReads = 100

// A Reader opens a body that it reads from another reader, chunk by chunk. It returns
// only bytes of chunks that are authentic and in their place, but that the message is
// complete is known only when Read returns io.EOF: until then the caller must not act
// on what it read as if it were the whole. It is not safe for concurrent use.
type Reader struct {
	src    io.Reader
	chunks sequence
	buf    [sealedChunkSize]byte
	plain  []byte // not yet returned; inside buf
	last   bool   // buf holds the last chunk
	err    error  // what Read returns once plain is empty
}

// NewReader reads the first 56 bytes of the body from r and checks the commitment. It
// returns ErrOpen when the key or the context is wrong or the body too short, and r's
// error as it is when r fails. The Reader keeps neither key nor context.
func NewReader(r io.Reader, key *[KeySize]byte, context []byte) (*Reader, error) {
	sr := &Reader{src: r}
	n, err := sr.fill(PrefixSize)
	if err != nil {
		return nil, err
	}
	if n < PrefixSize {
		return nil, ErrOpen
	}

	d := newDeriver()
	defer d.release()
	copy(d.salt(), sr.buf[:])
	d.derive(key, context)
	if subtle.ConstantTimeCompare(d.commitment(), sr.buf[SaltSize:PrefixSize]) != 1 {
		return nil, ErrOpen
	}
	sr.chunks = *d.newSequence()
	return sr, nil
}

// Read returns the next bytes of the plaintext. It returns io.EOF after the last byte of
// a complete message, ErrOpen when the body was truncated, extended or changed, ErrClosed
// after Close, and the error of the underlying reader as it is. Every error is final:
// the buffer is wiped, and later calls return the same error.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.plain) == 0 {
		if r.err == nil {
			r.err = r.advance()
		}
		if r.err != nil {
			r.wipe()
			return 0, r.err
		}
	}
	n := copy(p, r.plain)
	r.plain = r.plain[n:]
	return n, nil
}

// Close wipes the buffer, for a caller who stops before io.EOF. It does not close the
// underlying reader and returns nil.
func (r *Reader) Close() error {
	if r.err == nil {
		r.err = ErrClosed
	}
	r.wipe()
	return nil
}

// advance opens the next chunk in place; after the last one it returns io.EOF.
func (r *Reader) advance() error {
	if r.last {
		return io.EOF
	}
	n, err := r.fill(sealedChunkSize)
	if err != nil {
		return err
	}
	if r.chunks.full() {
		return ErrOpen
	}
	r.last = n < sealedChunkSize
	r.plain, err = r.chunks.open(r.buf[:0], r.buf[:n])
	return err
}

// fill reads size bytes into buf, fewer only at the end of the underlying reader. It
// is not io.ReadFull because that cannot tell the end from an underlying reader that
// itself returns io.ErrUnexpectedEOF, which must reach the caller.
func (r *Reader) fill(size int) (int, error) {
	n := 0
	for empty := 0; n < size; {
		m, err := r.src.Read(r.buf[n:size])
		n += m
		if err == io.EOF {
			return n, nil
		}
		if err != nil && n < size {
			return n, err
		}
		if m > 0 {
			empty = 0
		} else if empty++; empty == maxEmptyReads {
			return n, io.ErrNoProgress
		}
	}
	return n, nil
}

func (r *Reader) wipe() {
	clear(r.buf[:])
	r.chunks = sequence{}
	r.plain = nil
	r.src = nil
}
