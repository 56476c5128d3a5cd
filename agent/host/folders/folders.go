package folders

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/internal/layout"
)

// Where the world's manifests look.
const (
	KubeletRoot = "/var/lib/kubelet"
	PodLogs     = "/var/log/pods"
)

// Folder is a folder of the node's data that is also seen at a fixed place.
type Folder struct {
	Data string      // below the data directory
	At   string      // where it is shown
	Mode os.FileMode // with which either is made
	// Optional says that the node works without the folder's being shown, as where the place belongs to somebody else.
	Optional bool
	// foreign returns why what lies at the place belongs to another kubelet, or "". The place exists.
	foreign func(at string) (string, error)
	// bring moves what the builds of before had at the place into the data; nil where that was nothing.
	bring func(Folder, *host.Journal) error
}

// Kubelet is the kubelet's root directory.
func Kubelet(d layout.Dirs) Folder {
	return Folder{Data: d.Kubelet(), At: KubeletRoot, Mode: 0o750, foreign: kubeletRootInUse, bring: bringDevicePlugins}
}

// Logs is the folder of the containers' logs.
func Logs(d layout.Dirs) Folder {
	return Folder{Data: d.PodLogs(), At: PodLogs, Mode: 0o755, Optional: true, foreign: logsInUse}
}

// Of lists all folders of a node.
func Of(d layout.Dirs) []Folder { return []Folder{Kubelet(d), Logs(d)} }

// ErrForeign means that the place belongs to somebody else.
var ErrForeign = errors.New("another kubelet's folder")

// Check returns an error that wraps ErrForeign where the folder must not be shown, because another kubelet uses the
// place. It changes nothing.
func (f Folder) Check() error {
	shown, err := f.Shown()
	if shown || err != nil {
		return err
	}
	at, err := filepath.EvalSymlinks(f.At)
	if errors.Is(err, fs.ErrNotExist) {
		return f.checkPlace(f.At)
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", f.At, err)
	}
	if same, err := f.same(); same || err != nil {
		return err // a link to it
	}
	if err := f.checkPlace(at); err != nil {
		return err
	}
	covers, _, err := host.Mounts(at)
	if err != nil {
		return err
	}
	if len(covers) > 0 && host.Deleted(covers[len(covers)-1]) {
		return nil
	}
	why, err := f.foreign(at)
	if err != nil {
		return fmt.Errorf("look at %s: %w", f.At, err)
	}
	if why == "" {
		return nil
	}
	if n := len(covers); n > 0 && covers[n-1].Root != "/" {
		root := covers[n-1].Root
		if strings.HasSuffix(root, "/agent/"+filepath.Base(f.Data)) {
			return fmt.Errorf("%s is %w: it shows %s, of another data-dir; set that one, or take it away with `umiak cleanup --data-dir DIR`", f.At, ErrForeign, root)
		}
		why += ", and it shows " + root
	}
	return fmt.Errorf("%s is %w (%s); stop that kubelet and move the folder away, because umiak has its own there", f.At, ErrForeign, why)
}

// checkPlace refuses a data folder that lies where it would cover itself.
func (f Folder) checkPlace(at string) error {
	data := f.Data
	for dir := data; ; dir = filepath.Dir(dir) { // what of it exists may lie behind a link
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			data = filepath.Join(real, strings.TrimPrefix(data, dir))
			break
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	if strings.HasPrefix(data+"/", at+"/") {
		return fmt.Errorf("data-dir: %s lies below %s, where it is to be shown; set another data-dir", data, at)
	}
	return nil
}

// Shown reports whether the folder is seen at its place. A link is not enough: it leads nowhere inside a pod.
func (f Folder) Shown() (bool, error) {
	st, err := os.Lstat(f.At)
	if errors.Is(err, fs.ErrNotExist) || err == nil && st.Mode()&fs.ModeSymlink != 0 {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", f.At, err)
	}
	return f.same()
}

// same reports whether both paths lead to one folder.
func (f Folder) same() (bool, error) {
	at, err := os.Stat(f.At)
	if err == nil {
		var data fs.FileInfo
		if data, err = os.Stat(f.Data); err == nil {
			return os.SameFile(at, data), nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return false, err
}

// Show makes both folders and mounts the one of the data at the place, where pods can share what is mounted in it.
// What it makes outside of the data directory is written to the journal first. It may be called again.
func (f Folder) Show(j *host.Journal) error {
	if err := f.show(j); err != nil {
		return fmt.Errorf("show %s at %s: %w", f.Data, f.At, err)
	}
	return nil
}

func (f Folder) show(j *host.Journal) error {
	if err := os.MkdirAll(f.Data, f.Mode); err != nil {
		return err
	}
	switch shown, err := f.Shown(); {
	case err != nil:
		return err
	case shown:
		return f.share()
	}
	if err := f.Check(); err != nil {
		return err
	}
	if err := f.place(j); err != nil {
		return err
	}
	if err := f.uncover(); err != nil {
		return err
	}
	if f.bring != nil {
		if err := f.bring(f, j); err != nil {
			return err
		}
	}
	_, below, err := host.Mounts(f.Data)
	if err != nil {
		return err
	}
	if len(below) > 0 {
		// Mounts of pods that run since before the folder was shown, or a disk of the user's. What is mounted at
		// one place from now on is then seen at the other, so that the build of before finds it, too.
		return f.mount(unix.MS_REC)
	}
	return f.mount(0)
}

// place makes the mount point. A link to the data, as some made by hand, gives way to it.
func (f Folder) place(j *host.Journal) error {
	st, err := os.Lstat(f.At)
	if err == nil && st.Mode()&fs.ModeSymlink != 0 {
		if same, err := f.same(); err != nil || !same {
			return err
		}
		if err := os.Remove(f.At); err != nil {
			return err
		}
		return f.makePlace(j)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return f.makePlace(j)
	}
	return err
}

func (f Folder) makePlace(j *host.Journal) error {
	if err := j.Made(host.KindPath, f.At); err != nil {
		return err
	}
	return os.MkdirAll(f.At, f.Mode)
}

// uncover takes mounts of folders that have been removed, such as of an earlier data directory, from the place.
func (f Folder) uncover() error {
	at, _, err := host.Mounts(f.At)
	if err != nil {
		return err
	}
	for i := len(at) - 1; i >= 0 && host.Deleted(at[i]); i-- {
		if err := unix.Unmount(f.At, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", at[i].Root, err)
		}
	}
	return nil
}

// Hide unmounts the folder from its place, if it is there, with all that is mounted in it; report is told of each.
// What is mounted in the folder of the data itself stays.
func (f Folder) Hide(report func(mountpoint string)) error {
	for range 16 { // nobody has it there more often
		at, _, err := host.Mounts(f.At)
		if err != nil || len(at) == 0 {
			return err
		}
		top := at[len(at)-1]
		if ours, err := f.ours(top); err != nil || !ours {
			return err
		}
		// A disk that is mounted in the data is seen here, too, and would be unmounted there with this.
		if err := unix.Mount("", top.Mountpoint, "", unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make %s private: %w", top.Mountpoint, err)
		}
		if err := unix.Unmount(top.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", top.Mountpoint, err)
		}
		report(top.Mountpoint)
	}
	return nil
}

// ours reports whether the uppermost mount at the place shows the data, also when those have been removed by hand.
func (f Folder) ours(top *mountinfo.Info) (bool, error) {
	if data, err := filepath.EvalSymlinks(f.Data); err == nil && data == top.Mountpoint {
		return false, nil // the place is a link to the data: that is a disk of the user's
	}
	if host.Deleted(top) {
		tail := filepath.Join(filepath.Base(filepath.Dir(f.Data)), filepath.Base(f.Data))
		return strings.HasSuffix(strings.TrimSuffix(top.Root, "//deleted"), "/"+tail), nil
	}
	return f.same()
}

// mount binds the data to the place and has the place share what is mounted in it.
func (f Folder) mount(recursive uintptr) error {
	if err := unix.Mount(f.Data, f.At, "", unix.MS_BIND|recursive, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	var err error
	if recursive == 0 {
		// Else each volume of a pod would be mounted twice where the data lie on a shared mount.
		err = unix.Mount("", f.At, "", unix.MS_PRIVATE, "")
	}
	if err == nil {
		err = unix.Mount("", f.At, "", unix.MS_SHARED|recursive, "")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("share mounts: %w", err), unix.Unmount(f.At, unix.MNT_DETACH))
	}
	return nil
}

// share has a place that is a mount of its own share what is mounted in it, if somebody has changed that.
func (f Folder) share() error {
	m, _, err := host.Mounts(f.At)
	if err != nil || len(m) == 0 || strings.Contains(m[len(m)-1].Optional, "shared:") {
		return err
	}
	return unix.Mount("", f.At, "", unix.MS_SHARED|unix.MS_REC, "")
}

// bringDevicePlugins moves the folder of device plugins' sockets, which the kubelet has always had at its fixed place,
// into the data: a plugin that runs has the folder itself mounted, and goes on being seen in it.
func bringDevicePlugins(f Folder, j *host.Journal) error {
	from, to := filepath.Join(f.At, "device-plugins"), filepath.Join(f.Data, "device-plugins")
	ours := false
	for _, p := range j.State().Made[host.KindPath] {
		ours = ours || p == from
	}
	if !ours {
		return nil
	}
	if _, err := os.Lstat(from); err != nil {
		return nil
	}
	if err := os.RemoveAll(to); err != nil {
		return fmt.Errorf("make room for device plugins: %w", err)
	}
	err := os.Rename(from, to)
	if errors.Is(err, unix.EXDEV) {
		return nil // on another disk plugins register again when they are restarted
	}
	if err != nil {
		return fmt.Errorf("move device plugins: %w", err)
	}
	return j.Gone(host.KindPath, from)
}
