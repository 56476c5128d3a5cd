package s3server

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/umiak-io/umiak/server/backup/s3"
	"github.com/umiak-io/umiak/server/pki"
)

// program is the name, with the version, of the program that scripts/test installs.
const program = "versitygw-v1.8.0"

// Server is a running S3 server.
type Server struct {
	// Config is the client configuration for its bucket, over TLS.
	Config s3.Config
	// Dir is the folder with the objects of the bucket, as files.
	Dir string
}

// Program returns the path of the program. It skips the test if it is not installed.
func Program(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("there is no go.mod above")
		}
		dir = filepath.Dir(dir)
	}
	p := filepath.Join(dir, ".cache", "bin", program)
	if _, err := os.Stat(p); err != nil {
		t.Skipf("%s is not installed; scripts/test unit installs it", program)
	}
	return p
}

// Start runs a server until the test ends.
func Start(t testing.TB) *Server {
	return StartAt(t, "127.0.0.1", func(f func() error) error { return f() })
}

// StartAt runs a server on an address until the test ends. in calls a function in the network namespace of the address.
func StartAt(t testing.TB, ip string, in func(f func() error) error) *Server {
	t.Helper()
	bin := Program(t)
	dir := t.TempDir()
	var at string
	if err := in(func() error {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", ip+":0")
		if err != nil {
			return err
		}
		at = l.Addr().String()
		return l.Close()
	}); err != nil {
		t.Fatal(err)
	}
	p, err := pki.Ensure(pki.Config{Dir: filepath.Join(dir, "pki")})
	if err != nil {
		t.Fatal(err)
	}
	leaf := pki.Leaf{Name: "s3", CA: pki.ServerCA, CertFile: filepath.Join(dir, "s3.crt"),
		KeyFile: filepath.Join(dir, "s3.key"), CommonName: "s3", Server: true, IPs: []string{ip}}
	if err := p.Add(leaf); err != nil {
		t.Fatal(err)
	}
	s := &Server{Dir: filepath.Join(dir, "root", "snaps"), Config: s3.Config{
		Bucket: "snaps", Endpoint: at, Folder: "clusters/pi", Region: "us-east-1", AccessKey: "access",
		SecretKey:  "s3cr3t-key",
		EndpointCA: p.CACert(pki.ServerCA), Timeout: time.Minute,
	}}
	for _, d := range []string{s.Dir, filepath.Join(dir, "meta")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	cmd := exec.CommandContext(t.Context(), bin, "--port", at, "--cert", leaf.CertFile, "--key", leaf.KeyFile,
		"--quiet", "posix", "--sidecar", filepath.Join(dir, "meta"), filepath.Dir(s.Dir))
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.Config.AccessKey, "ROOT_SECRET_KEY="+s.Config.SecretKey)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		// The thread that starts the program must outlive it, or Pdeathsig kills the program.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		_ = in(func() error {
			err := cmd.Start()
			started <- err
			if err == nil {
				err = cmd.Wait()
			}
			return err
		})
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { <-done }) // the end of the test's context kills the program
	for end := time.Now().Add(30 * time.Second); ; {
		err := in(func() error {
			c, err := new(net.Dialer).DialContext(t.Context(), "tcp", at)
			if err == nil {
				err = c.Close()
			}
			return err
		})
		if err == nil {
			return s
		}
		select {
		case <-done:
			t.Fatalf("%s ended:\n%s", program, log.String())
		case <-time.After(20 * time.Millisecond): // the server sends no event when it is ready
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not answer: %v", program, err)
		}
	}
}
