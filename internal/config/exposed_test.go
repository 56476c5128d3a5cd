package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// TestExposed checks that each readable file with a secret is named, and no other file.
func TestExposed(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "exposed") // the test's own folder is 0700
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var s struct {
		Token     string   `key:"token" secret:"true"`
		Endpoint  string   `key:"datastore-endpoint" secret:"true"`
		TokenFile string   `key:"token-file" secret:"file"`
		Names     []string `key:"tls-san"`
	}
	for _, c := range []struct {
		mode  os.FileMode
		files map[string]string
		want  string
	}{
		{0o644, map[string]string{"config.yaml": "tls-san: [a]\n"}, ""},
		{0o644, map[string]string{"config.yaml": "tls-san: [a]\ntoken: t\n"}, "config.yaml"},
		{0o600, map[string]string{"config.yaml": "token: t\n"}, ""},
		{0o644, map[string]string{"config.yaml": "tls-san: [a]\n", "config.yaml.d/50.yaml": "token: t\n"}, "50.yaml"},
		{0o644, map[string]string{"config.yaml": "datastore-endpoint: https://10.0.0.1:2379\n"}, ""},
		{0o644, map[string]string{"config.yaml": "datastore-endpoint: postgres://u:p@10.0.0.1/x\n"}, "config.yaml"},
		{0o644, map[string]string{"config.yaml": "token-file: DIR/the-token\n", "the-token": "t"}, "the-token"},
		{0o644, map[string]string{"config.yaml": "tls-san: [a]\n", "umiak.env": "UMIAK_TOKEN='t'\n"}, "umiak.env"},
		{0o644, map[string]string{"config.yaml": "tls-san: [a]\n", "umiak.env": "UMIAK_TLS_SAN='t'\n"}, ""},
	} {
		etc, err := os.MkdirTemp(dir, "etc")
		if err == nil {
			err = os.Chmod(etc, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range c.files {
			p := filepath.Join(etc, name)
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, []byte(strings.ReplaceAll(text, "DIR", etc)), c.mode); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		app := &cli.App{Flags: Flags(&s), Action: func(c *cli.Context) error {
			loaded, err := Load(c, &s)
			got = loaded.Exposed
			return err
		}}
		s.TokenFile = ""
		if err := app.Run([]string{"umiak", "--config", filepath.Join(etc, "config.yaml")}); err != nil {
			t.Fatal(err)
		}
		if len(got) > 1 || (len(got) == 1) != (c.want != "") || c.want != "" &&
			!strings.HasSuffix(got[0], "chmod 600 "+filepath.Join(etc, c.want)) && !strings.HasSuffix(got[0], c.want) {
			t.Errorf("%v: %q, want %q", c.files, got, c.want)
		}
	}
}
