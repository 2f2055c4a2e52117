package cobblestone_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/keysidecar/keysidecar/internal/cobblestone"
	"pgregory.net/rapid"
)

// mustRefuse checks that neither Open nor Reader accepts the body, and that the Reader
// returns nothing but a prefix of plaintext.
func mustRefuse(t *testing.T, what string, key *[32]byte, context, body, plaintext []byte) {
	t.Helper()
	dst := append(make([]byte, 0, len(body)+8), "before"...)
	got, err := cobblestone.Open(dst, key, context, body)
	if got != nil || !errors.Is(err, cobblestone.ErrOpen) {
		t.Errorf("%s: Open = %d bytes, %v, want ErrOpen", what, len(got), err)
	}
	if string(dst) != "before" || !allZero(dst[len(dst):cap(dst)]) {
		t.Errorf("%s: Open left bytes behind dst", what)
	}
	got, err = openStream(t, bytes.NewReader(body), key, context, 1000)
	if !errors.Is(err, cobblestone.ErrOpen) {
		t.Errorf("%s: Reader = %v, want ErrOpen", what, err)
	}
	if !bytes.HasPrefix(plaintext, got) || len(got)%cobblestone.ChunkSize != 0 {
		t.Errorf("%s: Reader released %d bytes that are no whole chunks of the message", what, len(got))
	}
}

// Three vectors of Wycheproof; test/wycheproof runs them all.
func TestKnownAnswers(t *testing.T) {
	key := (*[32]byte)([]byte("YELLOW SUBMARINE YELLOW SUBMARIN"))
	for _, tt := range []struct{ context, plaintext, body string }{
		{"", "", "" +
			"43a2e39431cbae0389d3fc86adf46f7c3a24de88d9311617e53f3164cc1d5dc738a66b97f0bf786565c31799c2f463d5" +
			"0a7e10046011dc6fc3c939e3a5db7affb6191551669554fb"},
		{"", "chunked", "" +
			"a1a1b56f6db58cd1ede0c5c9db62aef20d3f96a6c594bb9252bb38122de91236502b42a1d7fcab820ffa292940d2f86a" +
			"dd212cfa42c38df19d3cc9139ee61a5990d3db57433514229beea49a8a72bd"},
		{"test context", "chunked", "" +
			"dbedaefc1c35dc6c0f22b743b03e488747166a51f33479e7ceb8b7e11cc0d2710f624a127501bc4aea7d0af6f83cfe35" +
			"9b9e69415aa537f36adf86eb35b070475baa039bb7791432adbca49578bbd3"},
	} {
		want, err := hex.DecodeString(tt.body)
		if err != nil {
			t.Fatal(err)
		}
		got, err := cobblestone.Open(nil, key, []byte(tt.context), want)
		if err != nil || string(got) != tt.plaintext {
			t.Errorf("Open = %q, %v, want %q", got, err, tt.plaintext)
		}
		useSalt(t, want[:cobblestone.SaltSize])
		if got := cobblestone.Seal(nil, key, []byte(tt.context), []byte(tt.plaintext)); !bytes.Equal(got, want) {
			t.Errorf("Seal(%q) = %x, want %x", tt.plaintext, got, want)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	key := testKey()
	for _, n := range lengths {
		for _, contextSize := range []int{0, 1, 100, 255, 256, 257, 9000} {
			plaintext, context := pattern(n), pattern(contextSize)
			body := cobblestone.Seal([]byte("header"), key, context, plaintext)
			body, ok := bytes.CutPrefix(body, []byte("header"))
			if !ok || len(body) != cobblestone.SealedSize(n) {
				t.Fatalf("Seal of %d bytes returned %d bytes, dst kept: %v", n, len(body), ok)
			}
			if want := reference(t, key, body[:24], context, plaintext); !bytes.Equal(body, want) {
				t.Fatalf("Seal of %d bytes differs from the reference", n)
			}
			got, err := cobblestone.Open([]byte("dst"), key, context, body)
			if err != nil || string(got[:3]) != "dst" || !bytes.Equal(got[3:], plaintext) {
				t.Fatalf("Open of %d bytes: %v", n, err)
			}
			if size, err := cobblestone.OpenedSize(len(body)); size != n || err != nil {
				t.Fatalf("OpenedSize(%d) = %d, %v, want %d", len(body), size, err, n)
			}
		}
	}
}

// A counter of more than one byte.
func TestManyChunks(t *testing.T) {
	key, plaintext := testKey(), pattern(258*cobblestone.ChunkSize+3)
	body := cobblestone.Seal(nil, key, nil, plaintext)
	if want := reference(t, key, body[:24], nil, plaintext); !bytes.Equal(body, want) {
		t.Fatal("Seal differs from the reference")
	}
	got, err := cobblestone.Open(nil, key, nil, body)
	if err != nil || !bytes.Equal(got, plaintext) {
		t.Fatalf("Open: %v", err)
	}
}

func TestSizes(t *testing.T) {
	last := -1
	for n := range 3*sealedChunkSize + 100 {
		size, err := cobblestone.OpenedSize(n)
		if err != nil {
			if size != 0 || !errors.Is(err, cobblestone.ErrOpen) {
				t.Fatalf("OpenedSize(%d) = %d, %v", n, size, err)
			}
			continue
		}
		if size != last+1 || cobblestone.SealedSize(size) != n {
			t.Fatalf("OpenedSize(%d) = %d, SealedSize = %d", n, size, cobblestone.SealedSize(size))
		}
		last = size
	}
	if want := 3*cobblestone.ChunkSize - 1; last < want {
		t.Errorf("greatest plaintext %d, want at least %d", last, want)
	}
	for _, n := range []int{-1, -1 << 62, cobblestone.PrefixSize + cobblestone.MaxChunks*sealedChunkSize + 16} {
		if size, err := cobblestone.OpenedSize(n); size != 0 || !errors.Is(err, cobblestone.ErrOpen) {
			t.Errorf("OpenedSize(%d) = %d, %v", n, size, err)
		}
	}
}

func TestSaltsDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		seen[string(cobblestone.Seal(nil, testKey(), nil, nil)[:cobblestone.SaltSize])] = true
	}
	if len(seen) != 1000 {
		t.Errorf("1000 messages have %d salts", len(seen))
	}
}

func TestEveryBitFlip(t *testing.T) {
	key, context := testKey(), []byte("context")
	for _, n := range []int{0, 1, 33} {
		body := cobblestone.Seal(nil, key, context, pattern(n))
		for bit := range 8 * len(body) {
			mustRefuse(t, fmt.Sprintf("%d bytes, bit %d", n, bit), key, context, flip(body, bit), nil)
		}
	}
}

func TestBitFlipsAcrossChunks(t *testing.T) {
	key, plaintext := testKey(), pattern(2*cobblestone.ChunkSize+100)
	body := cobblestone.Seal(nil, key, nil, plaintext)
	for at := 0; at < len(body); at += 509 {
		mustRefuse(t, fmt.Sprint("byte ", at), key, nil, flip(body, 8*at+at%8), plaintext)
	}
}

func TestEveryTruncation(t *testing.T) {
	key, context := testKey(), []byte("context")
	for _, n := range []int{0, 1, 33} {
		body := cobblestone.Seal(nil, key, context, pattern(n))
		for size := range body {
			mustRefuse(t, fmt.Sprintf("%d bytes, cut to %d", n, size), key, context, body[:size], nil)
		}
	}
}

func TestTruncationAcrossChunks(t *testing.T) {
	key := testKey()
	for _, n := range []int{cobblestone.ChunkSize, 2 * cobblestone.ChunkSize, 2*cobblestone.ChunkSize + 40} {
		plaintext := pattern(n)
		body := cobblestone.Seal(nil, key, nil, plaintext)
		for _, boundary := range []int{0, sealedChunkSize, 2 * sealedChunkSize, len(body) - cobblestone.PrefixSize} {
			for size := cobblestone.PrefixSize + boundary - 20; size < cobblestone.PrefixSize+boundary+20; size++ {
				if size < len(body) {
					mustRefuse(t, fmt.Sprintf("%d bytes, cut to %d", n, size), key, nil, body[:size], plaintext)
				}
			}
		}
	}
}

func TestAppendedBytes(t *testing.T) {
	key := testKey()
	for _, n := range []int{0, 10, cobblestone.ChunkSize - 1, cobblestone.ChunkSize, 2*cobblestone.ChunkSize - 1} {
		plaintext := pattern(n)
		body := cobblestone.Seal(nil, key, nil, plaintext)
		first := body[cobblestone.PrefixSize:]
		for _, tail := range [][]byte{{0}, make([]byte, 16), make([]byte, 17), body[len(body)-16:], first} {
			mustRefuse(t, fmt.Sprintf("%d bytes and %d more", n, len(tail)), key, nil, slices.Concat(body, tail), plaintext)
		}
	}
}

func TestChunksMoved(t *testing.T) {
	key, plaintext := testKey(), pattern(3*cobblestone.ChunkSize+7)
	body := cobblestone.Seal(nil, key, nil, plaintext)
	other := cobblestone.Seal(nil, key, nil, plaintext)
	prefix, chunks := body[:cobblestone.PrefixSize], body[cobblestone.PrefixSize:]
	chunk := func(i int) []byte { return chunks[i*sealedChunkSize : min((i+1)*sealedChunkSize, len(chunks))] }
	for name, bad := range map[string][][]byte{
		"swapped":            {prefix, chunk(1), chunk(0), chunk(2), chunk(3)},
		"repeated":           {prefix, chunk(0), chunk(0), chunk(1), chunk(2), chunk(3)},
		"dropped first":      {prefix, chunk(1), chunk(2), chunk(3)},
		"dropped middle":     {prefix, chunk(0), chunk(2), chunk(3)},
		"last chunk early":   {prefix, chunk(3), chunk(0), chunk(1), chunk(2)},
		"of another message": {prefix, chunk(0), other[cobblestone.PrefixSize+sealedChunkSize:]},
		"another prefix":     {other[:cobblestone.PrefixSize], chunks},
		"another salt":       {other[:cobblestone.SaltSize], body[cobblestone.SaltSize:]},
	} {
		mustRefuse(t, name, key, nil, slices.Concat(bad...), plaintext)
	}
}

func TestWrongKeyOrContext(t *testing.T) {
	key, context := testKey(), []byte("tenant-a")
	body := cobblestone.Seal(nil, key, context, []byte("attack at dawn"))
	for _, bad := range []string{"", "tenant-b", "tenant-", "tenant-a\x00", "tenant-aa"} {
		mustRefuse(t, "context "+bad, key, []byte(bad), body, nil)
	}
	for bit := range 256 {
		wrong := [32]byte(flip(key[:], bit))
		mustRefuse(t, fmt.Sprint("key bit ", bit), &wrong, context, body, nil)
	}
}

// The bytes of good chunks before a bad one must not stay behind dst.
func TestOpenWipesOnFailure(t *testing.T) {
	key, plaintext := testKey(), pattern(3*cobblestone.ChunkSize)
	body := cobblestone.Seal(nil, key, nil, plaintext)
	body[len(body)-1] ^= 1
	dst := make([]byte, 4, 4+len(plaintext))
	if got, err := cobblestone.Open(dst, key, nil, body); got != nil || !errors.Is(err, cobblestone.ErrOpen) {
		t.Fatalf("Open = %d bytes, %v", len(got), err)
	}
	if !allZero(dst[:cap(dst)]) {
		t.Error("plaintext left behind dst")
	}
}

// Callers keep their key, context, plaintext and body.
func TestInputsUntouched(t *testing.T) {
	key, context, plaintext := testKey(), pattern(300), pattern(20000)
	body := cobblestone.Seal(nil, key, context, plaintext)
	kept := bytes.Clone(body)
	if _, err := cobblestone.Open(nil, key, context, body); err != nil {
		t.Fatal(err)
	}
	if *key != *testKey() || !bytes.Equal(context, pattern(300)) ||
		!bytes.Equal(plaintext, pattern(20000)) || !bytes.Equal(body, kept) {
		t.Error("an argument was changed")
	}
}

func TestOverlapPanics(t *testing.T) {
	key := testKey()
	const n = 2*cobblestone.ChunkSize + 5
	buf := make([]byte, 4*n)
	mustPanic := func(name string, f func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s: no panic", name)
			}
		}()
		f()
	}
	for _, at := range []int{0, 1, cobblestone.PrefixSize, cobblestone.ChunkSize + 100, n} {
		mustPanic(fmt.Sprint("Seal ", at), func() { cobblestone.Seal(buf[:0], key, nil, buf[at:at+n]) })
	}
	size := cobblestone.SealedSize(n)
	cobblestone.Seal(buf[n:n], key, nil, pattern(n))
	for _, at := range []int{1, n, n + cobblestone.PrefixSize, n + size - 1} {
		mustPanic(fmt.Sprint("Open ", at), func() { _, _ = cobblestone.Open(buf[:at], key, nil, buf[n:n+size]) })
	}
	// Neighbours do not overlap.
	if got, err := cobblestone.Open(buf[:0], key, nil, buf[n:n+size]); err != nil || !bytes.Equal(got, pattern(n)) {
		t.Errorf("Open beside its input: %v", err)
	}
}

func TestLeavesNothing(t *testing.T) {
	key := testKey()
	for _, n := range []int{0, 47, 300} {
		context := pattern(n)
		if used, blank := cobblestone.ReleaseBlanks(key, context); !used || !blank {
			t.Errorf("context of %d bytes: state in use seen: %v, wiped: %v", n, used, blank)
		}
		body := cobblestone.Seal(nil, key, context, pattern(n))
		for name, f := range map[string]func(){
			"Seal":         func() { cobblestone.Seal(nil, key, context, pattern(n)) },
			"Open":         func() { _, _ = cobblestone.Open(nil, key, context, body) },
			"failing Open": func() { _, _ = cobblestone.Open(nil, key, context, flip(body, 300)) },
			"bad tag":      func() { _, _ = cobblestone.Open(nil, key, context, flip(body, 8*len(body)-1)) },
			"NewWriter":    func() { _, _ = cobblestone.NewWriter(io.Discard, key, context) },
			"NewReader":    func() { _, _ = cobblestone.NewReader(bytes.NewReader(body), key, context) },
		} {
			if f(); !cobblestone.IsPoolBlank() {
				t.Errorf("%s with a context of %d bytes left something in the pool", name, n)
			}
		}
	}
}

func TestConcurrent(t *testing.T) {
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			key := testKey()
			key[0] = byte(g)
			context := []byte{byte(g)}
			for n := range 200 {
				body := cobblestone.Seal(nil, key, context, pattern(n*100))
				got, err := cobblestone.Open(nil, key, context, body)
				if err != nil || !bytes.Equal(got, pattern(n*100)) {
					t.Errorf("goroutine %d, %d bytes: %v", g, n*100, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestProperties(t *testing.T) {
	length := rapid.OneOf(
		rapid.IntRange(0, 200),
		rapid.Custom(func(t *rapid.T) int {
			return max(0, rapid.IntRange(0, 4).Draw(t, "chunks")*cobblestone.ChunkSize+rapid.IntRange(-40, 40).Draw(t, "off"))
		}))
	sizes := rapid.SliceOfN(rapid.IntRange(1, 40000), 1, 5)
	rapid.Check(t, func(rt *rapid.T) {
		key := (*[32]byte)(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(rt, "key"))
		context := rapid.SliceOfN(rapid.Byte(), 0, 600).Draw(rt, "context")
		plaintext := pattern(length.Draw(rt, "length"))

		body := cobblestone.Seal(nil, key, context, plaintext)
		if rapid.Bool().Draw(rt, "stream") {
			body = sealStream(t, key, context, plaintext, sizes.Draw(rt, "writes")...)
		}
		got, err := cobblestone.Open(nil, key, context, body)
		if err != nil || !bytes.Equal(got, plaintext) {
			rt.Fatalf("Open: %v", err)
		}
		got, err = openStream(t, bytes.NewReader(body), key, context, rapid.IntRange(1, 40000).Draw(rt, "reads"))
		if err != nil || !bytes.Equal(got, plaintext) {
			rt.Fatalf("Reader: %v", err)
		}
		bad := flip(body, rapid.IntRange(0, 8*len(body)-1).Draw(rt, "bit"))
		if got, err := cobblestone.Open(nil, key, context, bad); got != nil || !errors.Is(err, cobblestone.ErrOpen) {
			rt.Fatalf("Open of a changed body = %d bytes, %v", len(got), err)
		}
	})
}
