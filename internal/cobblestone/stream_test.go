package cobblestone_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"

	"github.com/keysidecar/keysidecar/internal/cobblestone"
)

var errBroken = errors.New("broken pipe")

func TestStreamsInteroperate(t *testing.T) {
	key, context := testKey(), []byte("context")
	for _, n := range lengths {
		plaintext := pattern(n)
		for _, size := range []int{1, 7, 4096, 16383, 16384, 16385, 100000} {
			if n/size > 70000 {
				continue
			}
			body := sealStream(t, key, context, plaintext, size)
			if want := reference(t, key, body[:24], context, plaintext); !bytes.Equal(body, want) {
				t.Fatalf("Writer of %d bytes in writes of %d differs from the reference", n, size)
			}
			for _, body := range [][]byte{body, cobblestone.Seal(nil, key, context, plaintext)} {
				got, err := openStream(t, bytes.NewReader(body), key, context, size)
				if err != nil || !bytes.Equal(got, plaintext) {
					t.Fatalf("Reader of %d bytes in reads of %d: %v", n, size, err)
				}
			}
		}
	}
}

// The same salt gives the same bytes, however they are sealed.
func TestWriterEqualsSeal(t *testing.T) {
	key, plaintext := testKey(), pattern(40000)
	body := cobblestone.Seal(nil, key, nil, plaintext)
	useSalt(t, body[:cobblestone.SaltSize])
	if got := sealStream(t, key, nil, plaintext, 999); !bytes.Equal(got, body) {
		t.Error("Writer and Seal differ")
	}
}

func TestReaderOfOddReaders(t *testing.T) {
	key, plaintext := testKey(), pattern(2*cobblestone.ChunkSize+9)
	body := cobblestone.Seal(nil, key, nil, plaintext)
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"one byte":   iotest.OneByteReader,
		"half":       iotest.HalfReader,
		"data error": iotest.DataErrReader,
		"empty":      func(r io.Reader) io.Reader { return &emptyReads{r: r} },
	} {
		got, err := openStream(t, wrap(bytes.NewReader(body)), key, nil, 5000)
		if err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r, err := cobblestone.NewReader(bytes.NewReader(body), key, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(r, plaintext); err != nil {
		t.Error(err)
	}
}

// emptyReads returns 0, nil before every read.
type emptyReads struct {
	r    io.Reader
	next bool
}

func (e *emptyReads) Read(p []byte) (int, error) {
	e.next = !e.next
	if e.next {
		return 0, nil
	}
	return e.r.Read(p)
}

type neverReads struct{}

func (neverReads) Read([]byte) (int, error) { return 0, nil }

func TestReaderGivesUp(t *testing.T) {
	body := cobblestone.Seal(nil, testKey(), nil, pattern(10))
	src := io.MultiReader(bytes.NewReader(body), neverReads{})
	if _, err := openStream(t, src, testKey(), nil, 100); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("err = %v, want io.ErrNoProgress", err)
	}
}

// An error of the underlying reader arrives as it is, wherever it happens, and is never
// taken for the end of the message; io.ErrUnexpectedEOF is the one that io.ReadFull would confuse.
func TestReaderKeepsErrors(t *testing.T) {
	key, plaintext := testKey(), pattern(cobblestone.ChunkSize+100)
	body := cobblestone.Seal(nil, key, nil, plaintext)
	for _, want := range []error{errBroken, io.ErrUnexpectedEOF} {
		for _, at := range []int{0, 1, 24, 55, 56, 57, 1000, 56 + sealedChunkSize, len(body) - 1, len(body)} {
			src := io.MultiReader(bytes.NewReader(body[:at]), iotest.ErrReader(want))
			got, err := openStream(t, src, key, nil, 3000)
			if err != want {
				t.Errorf("broken after %d bytes: err = %v, want %v", at, err, want)
			}
			if !bytes.HasPrefix(plaintext, got) || len(got)%cobblestone.ChunkSize != 0 {
				t.Errorf("broken after %d bytes: Reader returned %d bytes", at, len(got))
			}
		}
	}
}

func TestReaderClose(t *testing.T) {
	body := cobblestone.Seal(nil, testKey(), nil, pattern(100))
	r, err := cobblestone.NewReader(bytes.NewReader(body), testKey(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 10)); n != 10 || err != nil {
		t.Fatalf("Read = %d, %v", n, err)
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Read(make([]byte, 10)); n != 0 || !errors.Is(err, cobblestone.ErrClosed) {
			t.Errorf("Read after Close = %d, %v", n, err)
		}
	}
	if r.HasKeys() || !allZero(r.Buffer()) {
		t.Error("Close left keys or plaintext")
	}
	if n, err := r.Read(nil); n != 0 || err != nil {
		t.Errorf("empty Read = %d, %v", n, err)
	}
}

func TestWriterClose(t *testing.T) {
	var body bytes.Buffer
	w, err := cobblestone.NewWriter(&body, testKey(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(pattern(20000)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		w.Abort()
	}
	if body.Len() != cobblestone.SealedSize(20000) {
		t.Errorf("body of %d bytes", body.Len())
	}
	if n, err := w.Write([]byte{1}); n != 0 || !errors.Is(err, cobblestone.ErrClosed) {
		t.Errorf("Write after Close = %d, %v", n, err)
	}
	if w.HasKeys() || !allZero(w.Buffer()) {
		t.Error("Close left keys or plaintext")
	}
}

func TestWriterAbort(t *testing.T) {
	for _, n := range []int{0, 100, cobblestone.ChunkSize, cobblestone.ChunkSize + 1} {
		var body bytes.Buffer
		w, err := cobblestone.NewWriter(&body, testKey(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(pattern(n)); err != nil {
			t.Fatal(err)
		}
		w.Abort()
		if w.HasKeys() || !allZero(w.Buffer()) {
			t.Error("Abort left keys or plaintext")
		}
		_, writeErr := w.Write(nil)
		if closeErr := w.Close(); !errors.Is(closeErr, cobblestone.ErrClosed) || !errors.Is(writeErr, cobblestone.ErrClosed) {
			t.Errorf("after Abort: Write %v, Close %v", writeErr, closeErr)
		}
		mustRefuse(t, fmt.Sprintf("aborted after %d bytes", n), testKey(), nil, body.Bytes(), pattern(n))
	}
}

// limited fails, or writes short, at the limit.
type limited struct {
	left int
	err  error
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	if n < len(p) {
		return n, l.err
	}
	return n, nil
}

// The underlying writer breaks after every number of bytes: its error comes back as it
// is, from the call that met it and from every later one.
func TestWriterKeepsErrors(t *testing.T) {
	const n = 2*cobblestone.ChunkSize + 100
	for left := 0; left < cobblestone.SealedSize(n); left += 53 {
		if err := writeTo(t, &limited{left: left, err: errBroken}, n); err != errBroken {
			t.Fatalf("room for %d: %v", left, err)
		}
		if err := writeTo(t, &limited{left: left}, n); err != io.ErrShortWrite {
			t.Fatalf("short write after %d: %v", left, err)
		}
	}
}

// writeTo seals n bytes to dst and returns the error that all calls agree on.
func writeTo(t *testing.T, dst io.Writer, n int) error {
	t.Helper()
	w, err := cobblestone.NewWriter(dst, testKey(), nil)
	if err != nil {
		if w != nil {
			t.Fatal("NewWriter returned a Writer and an error")
		}
		return err
	}
	wrote, writeErr := w.Write(pattern(n))
	if (writeErr != nil) != (wrote < n) {
		t.Fatalf("Write = %d, %v", wrote, writeErr)
	}
	if writeErr != nil {
		if w.HasKeys() || !allZero(w.Buffer()) {
			t.Fatalf("keys or plaintext kept after Write: %v", writeErr)
		}
		if m, again := w.Write(pattern(5)); m != 0 || again != writeErr {
			t.Fatalf("Write after %v = %d, %v", writeErr, m, again)
		}
	}
	err = w.Close()
	if again := w.Close(); again != err || writeErr != nil && err != writeErr {
		t.Fatalf("Write %v, Close %v, then %v", writeErr, err, again)
	}
	if w.HasKeys() || !allZero(w.Buffer()) {
		t.Fatalf("keys or plaintext kept after Close: %v", err)
	}
	return err
}

// The last chunk that a message may have is a short one; nothing follows it.
func TestChunkLimit(t *testing.T) {
	open := func(chunk uint64) (*cobblestone.Writer, *bytes.Buffer) {
		var body bytes.Buffer
		w, err := cobblestone.NewWriter(&body, testKey(), nil)
		if err != nil {
			t.Fatal(err)
		}
		w.SkipTo(chunk)
		return w, &body
	}
	w, body := open(cobblestone.MaxChunks - 2)
	if _, err := w.Write(pattern(2*cobblestone.ChunkSize - 1)); err != nil {
		t.Errorf("Write up to the limit: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Errorf("Close at the limit: %v", err)
	}
	r, err := cobblestone.NewReader(bytes.NewReader(body.Bytes()), testKey(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SkipTo(cobblestone.MaxChunks - 2)
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, pattern(2*cobblestone.ChunkSize-1)) {
		t.Errorf("Reader at the limit: %v", err)
	}

	w, body = open(cobblestone.MaxChunks - 2)
	if _, err := w.Write(pattern(2 * cobblestone.ChunkSize)); !errors.Is(err, cobblestone.ErrTooLong) {
		t.Errorf("Write over the limit: %v", err)
	}
	if w.HasKeys() || !allZero(w.Buffer()) {
		t.Error("keys or plaintext kept after Write over the limit")
	}
	if err := w.Close(); !errors.Is(err, cobblestone.ErrTooLong) {
		t.Errorf("Close over the limit: %v", err)
	}
	if body.Len() != cobblestone.PrefixSize+sealedChunkSize {
		t.Errorf("over the limit: %d bytes written", body.Len())
	}

	r, err = cobblestone.NewReader(bytes.NewReader(body.Bytes()), testKey(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SkipTo(cobblestone.MaxChunks)
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, cobblestone.ErrOpen) {
		t.Errorf("Reader over the limit: %v", err)
	}
}
