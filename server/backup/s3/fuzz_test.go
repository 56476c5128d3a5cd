package s3

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// fixedServer answers each list with the same text, and says of each object what is in info.
type fixedServer struct {
	list, info string
	asked      int
	enough     context.CancelFunc
}

func (s *fixedServer) RoundTrip(r *http.Request) (*http.Response, error) {
	if s.asked++; s.asked > 20 {
		s.enough() // as the time does otherwise
	}
	h := http.Header{"Content-Type": {"application/xml"}, "Last-Modified": {"Mon, 30 Nov 2026 12:00:00 GMT"}}
	body := s.list
	if r.Method == http.MethodHead {
		body = ""
		h.Set("X-Amz-Meta-Umiak-Info", strings.Map(func(c rune) rune {
			if c < ' ' || c > '~' {
				return -1
			}
			return c
		}, s.info))
	}
	return &http.Response{StatusCode: http.StatusOK, Status: "200 OK", ProtoMajor: 1, ProtoMinor: 1, Header: h,
		ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader([]byte(body))), Request: r}, nil
}

// FuzzList: whatever a server lists, the names are of files in the folder.
func FuzzList(f *testing.F) {
	const begin = `<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>f/</Prefix>`
	const object = `<Contents><Key>KEY</Key><LastModified>2026-11-30T12:00:00.000Z</LastModified><ETag>"e"</ETag><Size>5</Size></Contents>`
	f.Add(begin+strings.ReplaceAll(object, "KEY", "f/one.snapshot")+
		"<IsTruncated>false</IsTruncated></ListBucketResult>", "info")
	f.Add(begin+strings.ReplaceAll(object, "KEY", "f/../../etc/x.snapshot")+
		strings.ReplaceAll(object, "KEY", "/x.snapshot")+"</ListBucketResult>", "")
	f.Add(begin+"<IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken></ListBucketResult>", "")
	f.Add("<html>", "{")
	f.Fuzz(func(t *testing.T, list, info string) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		client, err := minio.New("s3.test", &minio.Options{Creds: credentials.NewStaticV4("a", "b", ""),
			Transport: &fixedServer{list: list, info: info, enough: cancel}, Region: "r", MaxRetries: 1})
		if err != nil {
			t.Fatal(err)
		}
		b := &Bucket{cfg: Config{Bucket: "bucket", Folder: "f", Endpoint: "s3.test", Timeout: time.Minute},
			client: client}
		all, err := b.List(ctx, ".snapshot")
		if err != nil {
			return
		}
		for _, o := range all {
			if strings.Contains(o.Name, "/") || !strings.HasSuffix(o.Name, ".snapshot") {
				t.Errorf("listed: %+v", o)
			}
		}
		if len(all) > maxObjects {
			t.Errorf("%d objects", len(all))
		}
	})
}
