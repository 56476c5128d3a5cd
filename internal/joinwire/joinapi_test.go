package joinwire

import (
	"bytes"
	"strings"
	"testing"
)

func TestDecode(t *testing.T) {
	for body, good := range map[string]bool{
		`{"name":"n"}`: true, ` {"name":"n"} ` + "\n": true,
		``: false, `[]`: false, `{"name":1}`: false, `{"name":"n"}{}`: false, `{"name":"n"}x`: false,
		`{"nam":"n"}`: false,
		`{"name":"` + strings.Repeat("n", MaxBody) + `"}`: false,
	} {
		var r NodeRequest
		if err := Decode(strings.NewReader(body), &r); (err == nil) != good {
			t.Errorf("%.40q: %v", body, err)
		}
	}
}

func TestAnswersMaySayMore(t *testing.T) {
	var r NodeResponse
	if err := DecodeAnswer(strings.NewReader(`{"serverCA":"x","later":1}`), &r); err != nil || r.ServerCA != "x" {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"name":"n","ips":["10.0.0.1"],"password":"p","kubelet":"","agent":"","serving":""}`))
	f.Fuzz(func(_ *testing.T, raw []byte) {
		_ = Decode(bytes.NewReader(raw), &NodeRequest{})
		_ = DecodeAnswer(bytes.NewReader(raw), &NodeResponse{})
		_ = Decode(bytes.NewReader(raw), &ServerRequest{})
		_ = DecodeAnswer(bytes.NewReader(raw), &ServerResponse{})
	})
}
