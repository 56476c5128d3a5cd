package server_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestHealthIsOpenAndNothingElseHoweverUsersAuthenticate starts servers with what users set for authentication.
func TestHealthIsOpenAndNothingElseHoweverUsersAuthenticate(t *testing.T) {
	const head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n"
	const jwt = "jwt:\n- issuer: {url: 'https://issuer.invalid', audiences: [a]}\n  claimMappings: {username: {claim: sub, prefix: ''}}\n"
	const ok, no = http.StatusOK, http.StatusUnauthorized
	port := 6443 // each has its own: they run side by side
	for name, c := range map[string]struct {
		file            string
		args            []string
		health, version int
	}{
		"a file without anonymous": {head + jwt, nil, ok, no},
		"a file with anonymous":    {head + jwt + "anonymous: {enabled: true}\n", nil, ok, ok},
		"a file without strangers": {head + "anonymous: {enabled: false}\n", nil, no, no},
		"flags of an OIDC issuer": {"", []string{"oidc-issuer-url=https://issuer.invalid", "oidc-client-id=a"}, ok,
			no},
		"OIDC and anonymous-auth": {"", []string{"oidc-issuer-url=https://issuer.invalid",
			"oidc-client-id=a", "anonymous-auth=false"}, no, no},
		"a file and anonymous-auth": {head + jwt, []string{"anonymous-auth=true"}, ok, ok},
	} {
		port++
		address := fmt.Sprint("127.0.0.1:", port)
		env := []string{fmt.Sprint("UMIAK_TEST_PORT=", port)}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			args := c.args
			if c.file != "" {
				file := filepath.Join(dir, "authentication.yaml")
				if err := os.WriteFile(file, []byte(c.file), 0o600); err != nil {
					t.Fatal(err)
				}
				args = append(args, "authentication-config="+file)
			}
			p := start(t, dir, append(env, "UMIAK_TEST_APISERVER_ARGS="+strings.Join(args, "\n"))...)
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
				Timeout: 10 * time.Second}
			defer client.CloseIdleConnections()
			for path, want := range map[string]int{"/livez": c.health, "/readyz": c.health, "/healthz": c.health,
				"/version": c.version, "/livez/ping": 0, "/api": 0, "/metrics": 0} {
				resp, err := client.Get("https://" + address + path)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				if want == 0 && resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusForbidden ||
					want != 0 && resp.StatusCode != want {
					t.Errorf("%s: %s", path, resp.Status)
				}
			}
			p.stop(t)
		})
	}
}
