package cobblestone

import (
	"crypto/rand"
	"io"
)

// A Writer seals what is written to it as one message and writes the body to another
// writer, chunk by chunk. It buffers at most one chunk. The message is complete, and
// opens, only after Close has returned nil. It is not safe for concurrent use.
type Writer struct {
	dst    io.Writer
	chunks sequence
	buf    [sealedChunkSize]byte // n bytes of plaintext, then the chunk
	n      int                   // less than ChunkSize between calls
	ended  bool                  // by Close or Abort
	err    error                 // what every later call returns
}

// NewWriter derives the message's keys and writes the first 56 bytes of the body to w.
// It returns w's error. The Writer keeps neither key nor context.
func NewWriter(w io.Writer, key *[KeySize]byte, context []byte) (*Writer, error) {
	d := newDeriver()
	defer d.release()
	rand.Read(d.salt())
	d.derive(key, context)

	sw := &Writer{dst: w, chunks: *d.newSequence()}
	prefix := append(append(sw.buf[:0], d.salt()...), d.commitment()...)
	if err := sw.emit(prefix); err != nil {
		return nil, err
	}
	return sw, nil
}

// Write adds p to the message. It returns the error of the underlying writer as it is,
// ErrTooLong when the message would reach 4 PiB, ErrClosed after Close or Abort. After
// an error the message is broken: every later call, Close included, returns the same error.
func (w *Writer) Write(p []byte) (int, error) {
	if w.ended {
		return 0, ErrClosed
	}
	if w.err != nil {
		return 0, w.err
	}
	written := 0
	for len(p) > 0 {
		n := copy(w.buf[w.n:ChunkSize], p)
		w.n += n
		if w.n == ChunkSize {
			if err := w.flush(); err != nil {
				return written, err
			}
		}
		written += n
		p = p[n:]
	}
	return written, nil
}

// Close writes the last chunk and wipes the buffer. It does not close the underlying
// writer. The message is complete when it returns nil. A second Close does nothing and
// returns what the first returned.
//
// Whoever cannot write the whole message must call Abort instead: Close would make what
// was written so far a valid message.
func (w *Writer) Close() error {
	if w.ended {
		return w.err
	}
	w.ended = true
	if w.err == nil {
		w.err = w.flush()
	}
	w.wipe()
	return w.err
}

// Abort wipes the buffer and leaves the message without its last chunk, so that it
// never opens. Later calls return ErrClosed. After Close it does nothing.
func (w *Writer) Abort() {
	if w.ended {
		return
	}
	w.ended = true
	w.err = ErrClosed
	w.wipe()
}

// flush seals the buffered plaintext in place and writes the chunk.
func (w *Writer) flush() error {
	// A last, shorter chunk always follows a full one, so that one is refused a chunk early.
	if w.n == ChunkSize && w.chunks.next >= maxChunks-1 {
		w.err = ErrTooLong
		w.wipe()
		return w.err
	}
	chunk := w.chunks.seal(w.buf[:0], w.buf[:w.n])
	w.n = 0
	return w.emit(chunk)
}

func (w *Writer) emit(p []byte) error {
	n, err := w.dst.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		w.err = err
		w.wipe()
	}
	return err
}

func (w *Writer) wipe() {
	clear(w.buf[:])
	w.chunks = sequence{}
	w.n = 0
}
