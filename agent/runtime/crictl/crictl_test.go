package crictl

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/agent/runtime/crictl/upstream"
)

func TestParse(t *testing.T) {
	for args, want := range map[string]line{
		"":                                {info: true},
		"ps -a":                           {command: "ps"},
		"pods -r name":                    {command: "pods"},
		"exec -i c sh":                    {command: "exec"},
		"-D ps -i image":                  {command: "ps"},
		"--timeout 5s -D images":          {command: "images"},
		"--timeout=5s images --help":      {command: "images", info: true},
		"-c -r ps":                        {command: "ps", config: true}, // -r is the value of -c
		"-- -r x":                         {command: "--"},
		"--version":                       {info: true},
		"-r unix:///x ps":                 {command: "ps", endpoint: true},
		"--runtime-endpoint=unix:///x ps": {command: "ps", endpoint: true},
		"-D --image-endpoint unix:///x p": {command: "p", endpoint: true},
		"-t 5s -i unix:///x images":       {command: "images", endpoint: true},
		"-runtime-endpoint unix:///x ps":  {command: "ps", endpoint: true},
		"--config=/x config --get debug":  {command: "config", config: true},
	} {
		if got := parse(strings.Fields(args)); got != want {
			t.Errorf("crictl %s: %+v, want %+v", args, got, want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("CRI_CONFIG_FILE", "")
	there, none := filepath.Join(t.TempDir(), "crictl.yaml"), "/no/crictl.yaml"
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		line             line
		config           string
		endpoint, silent bool
	}{
		{line{command: "ps"}, none, true, true}, {line{command: "ps"}, there, true, false},
		{line{command: "ps", endpoint: true}, none, false, true}, {line{command: "config"}, none, true, false},
		{line{command: "ps", config: true}, none, true, false},
	} {
		got := c.line.environment("unix:///run/x", c.config)
		if (got["CONTAINER_RUNTIME_ENDPOINT"] == "unix:///run/x") != c.endpoint ||
			(got["IMAGE_SERVICE_ENDPOINT"] == "unix:///run/x") != c.endpoint ||
			(got["CRI_CONFIG_FILE"] == os.DevNull) != c.silent {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// TestWithoutOverlay runs what a plain go build links.
func TestWithoutOverlay(t *testing.T) {
	args := os.Args
	t.Cleanup(func() { os.Args = args })
	for _, name := range []string{"CONTAINER_RUNTIME_ENDPOINT", "IMAGE_SERVICE_ENDPOINT", "CRI_CONFIG_FILE"} {
		t.Setenv(name, "unix:///another")
	}
	socket := filepath.Join(t.TempDir(), "x.sock")
	if err := Run([]string{"ps"}, socket); err == nil || !strings.Contains(err.Error(), "start umiak") {
		t.Errorf("without a socket: %v", err)
	}
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Run([]string{"ps"}, socket); !errors.Is(err, upstream.ErrMissing) {
		t.Error(err)
	}
	if e := os.Getenv("CONTAINER_RUNTIME_ENDPOINT"); e != "unix://"+socket || len(os.Args) != 2 {
		t.Errorf("endpoint %s, arguments %v", e, os.Args)
	}
}
