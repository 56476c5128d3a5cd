package imageshare

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"
)

// fixed is a connection to a neighbour that says one thing, whatever it is asked.
type fixed struct {
	net.Conn
	says *bytes.Reader
}

func (c fixed) Read(p []byte) (int, error)  { return c.says.Read(p) }
func (c fixed) Write(p []byte) (int, error) { return len(p), nil }
func (c fixed) Close() error                { return nil }

// FuzzAnswer: whatever a neighbour answers, nothing is taken from it but content with the digest that was asked for,
// of the length that it has said.
func FuzzAnswer(f *testing.F) {
	const text = "content of a blob"
	d := digest.FromString(text)
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 17\r\nDocker-Content-Digest: "+d.String()+"\r\n\r\n"+text), "")
	f.Add([]byte("HTTP/1.1 206 Partial Content\r\nContent-Length: 14\r\nContent-Range: bytes 3-16/17\r\nDocker-Content-Digest: "+d.String()+"\r\n\r\n"+text[3:]), "bytes=3-")
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 18\r\nDocker-Content-Digest: "+d.String()+
		"\r\n\r\nother than was said"), "")
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"), "")
	f.Add([]byte("HTTP/1.1 503 Busy\r\nRetry-After: 1\r\n\r\n"), "")
	f.Add([]byte("HTTP/1.1 302 Found\r\nLocation: https://evil.example/\r\n\r\n"), "")
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\n"), "")
	f.Fuzz(func(t *testing.T, says []byte, part string) {
		if part != "" && !openRange.MatchString(part) {
			return // not asked for
		}
		s := New(Config{Node: "own", Log: slog.New(slog.DiscardHandler)})
		s.http = &http.Transport{DisableCompression: true, DisableKeepAlives: true,
			DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
				return fixed{says: bytes.NewReader(says)}, nil
			}}
		for _, kind := range []string{blobs, manifests} {
			w := want{registry: "registry.test", repository: "app", kind: kind, digest: d}
			if a := s.has(t.Context(), w, "other"); a.has != nil &&
				(a.has.StatusCode != http.StatusOK || a.has.ContentLength < 0 ||
					kind == manifests && a.has.ContentLength > maxManifestSize ||
					a.has.Header.Get("Docker-Content-Digest") != d.String()) {
				t.Errorf("taken for an answer: %d, %d bytes, %v", a.has.StatusCode, a.has.ContentLength, a.has.Header)
			}
			resp, _ := s.get(t.Context(), "other", w, part)
			if resp == nil {
				continue
			}
			got, err := io.ReadAll(resp.Body)
			if err == nil && (int64(len(got)) != resp.ContentLength || part == "" && digest.FromBytes(got) != d) {
				t.Errorf("taken for content: %q", got)
			}
			_ = resp.Body.Close()
			out := response(resp.StatusCode, resp.Header, resp.ContentLength, http.NoBody)
			if out.Header.Get("Location") != "" || len(out.Header) > 4 {
				t.Errorf("passed on: %v", out.Header)
			}
		}
	})
}
