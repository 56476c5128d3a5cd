package debian

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/e2e/machine"
)

const (
	release  = "bookworm"
	packages = "systemd,systemd-sysv,dbus,iproute2,procps,ca-certificates,curl,rpm"
	recipe   = 1 // to be raised when finish changes
)

// ErrUnavailable means that no Debian can be had here: there is no mirror, or no debootstrap.
var ErrUnavailable = errors.New("no Debian root file system can be made here")

// mirror is where packages come from; UMIAK_E2E_MIRROR overrides it.
func mirror() string {
	if m := os.Getenv("UMIAK_E2E_MIRROR"); m != "" {
		return m
	}
	return "http://deb.debian.org/debian"
}

// rootfs returns the folder of the root file system, which is made when there is none. One process makes
// it, others wait.
func rootfs(ctx context.Context) (string, error) {
	for _, p := range []string{"debootstrap", "systemd-nspawn"} {
		if _, err := exec.LookPath(p); err != nil {
			return "", fmt.Errorf("%w: install debootstrap and systemd-container: %w", ErrUnavailable, err)
		}
	}
	if err := os.MkdirAll(machine.Root(), 0o755); err != nil {
		return "", err
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%s %s %d", release, packages, recipe))
	dir := filepath.Join(machine.Root(), fmt.Sprintf("debian-rootfs-%x", key[:4]))
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close() //nolint:errcheck // gives the lock back
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := reach(ctx, mirror()+"/dists/"+release+"/Release"); err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", "--include="+packages, release, part,
		mirror()).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("debootstrap: %w: %s", err, tail(string(out), 5))
	}
	if err := finish(part); err != nil {
		return "", fmt.Errorf("finish root file system: %w", err)
	}
	return dir, os.Rename(part, dir)
}

func reach(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// cgroupsUnit lets services make cgroups: nspawn shows all v1 hierarchies but systemd's own read-only.
const cgroupsUnit = `[Unit]
Description=Writable cgroups, as on a machine that is no container
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'for d in /sys/fs/cgroup /sys/fs/cgroup/*; do if mountpoint -q "$d"; then mount -o remount,rw,bind "$d"; fi; done'
[Install]
WantedBy=sysinit.target
`

// finish makes of the packages' state the state of a machine that is about to boot for the first time.
func finish(dir string) error {
	in := func(p string) string { return filepath.Join(dir, p) }
	unit := "etc/systemd/system/e2e-cgroups.service"
	wants := "etc/systemd/system/sysinit.target.wants"
	errs := []error{
		os.WriteFile(in("etc/machine-id"), nil, 0o444),
		os.WriteFile(in("etc/hosts"), []byte("127.0.0.1 localhost\n::1 localhost\n"), 0o644),
		os.WriteFile(in(unit), []byte(cgroupsUnit), 0o644),
		os.MkdirAll(in(wants), 0o755),
		os.Symlink("/"+unit, in(wants+"/e2e-cgroups.service")),
		os.MkdirAll(in("var/lib/umiak"), 0o755),
		os.RemoveAll(in("etc/hostname")),
		os.RemoveAll(in("var/lib/apt/lists")),
	}
	debs, err := filepath.Glob(in("var/cache/apt/archives/*.deb"))
	errs = append(errs, err)
	for _, d := range debs {
		errs = append(errs, os.Remove(d))
	}
	// No timer may start a job in the middle of a test.
	for _, t := range []string{"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
		"e2scrub_all.timer", "fstrim.timer", "systemd-tmpfiles-clean.timer"} {
		errs = append(errs, os.Symlink("/dev/null", in("etc/systemd/system/"+t)))
	}
	return errors.Join(errs...)
}
