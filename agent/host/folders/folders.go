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

// The fixed paths that manifests use.
const (
	KubeletRoot = "/var/lib/kubelet"
	PodLogs     = "/var/log/pods"
)

// Folder is a folder of the node's data that is also mounted at a fixed path.
type Folder struct {
	Data string      // path below the data directory
	At   string      // the fixed path
	Mode os.FileMode // of both folders
	// Optional means that the node works without the mount, for example if another program uses the path.
	Optional bool
	// foreign returns why another kubelet uses the existing path at, "" if none does.
	foreign func(at string) (string, error)
	// migrate moves what older builds stored at the path into the data; nil if they stored nothing.
	migrate func(Folder, *host.Journal) error
}

// Kubelet is the kubelet's root directory.
func Kubelet(d layout.Dirs) Folder {
	return Folder{Data: d.Kubelet(), At: KubeletRoot, Mode: 0o750, foreign: kubeletRootInUse,
		migrate: migrateDevicePlugins}
}

// Logs is the folder of the containers' logs.
func Logs(d layout.Dirs) Folder {
	return Folder{Data: d.PodLogs(), At: PodLogs, Mode: 0o755, Optional: true, foreign: logsInUse}
}

// PodLogsDir returns the path at which the containers' logs are written: PodLogs where that shows this node's folder,
// as log collectors expect it, and the folder of the data otherwise.
func PodLogsDir(d layout.Dirs) (string, error) {
	shown, err := Logs(d).Shown()
	if err != nil || !shown {
		return d.PodLogs(), err
	}
	return PodLogs, nil
}

// Of returns all folders of a node.
func Of(d layout.Dirs) []Folder { return []Folder{Kubelet(d), Logs(d)} }

// ErrForeign means that another kubelet uses the path.
var ErrForeign = errors.New("another kubelet's folder")

// Check returns an error that wraps ErrForeign if another kubelet uses the path. It changes nothing.
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
		return fmt.Errorf("inspect %s: %w", f.At, err)
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
	reason, err := f.foreign(at)
	if err != nil {
		return fmt.Errorf("inspect %s: %w", f.At, err)
	}
	if reason == "" {
		return nil
	}
	if n := len(covers); n > 0 && covers[n-1].Root != "/" {
		root := covers[n-1].Root
		if strings.HasSuffix(root, "/agent/"+filepath.Base(f.Data)) {
			return fmt.Errorf(
				"%s is %w: it shows %s, of another data-dir; set that data-dir, or remove it with `umiak cleanup --data-dir DIR`", f.At, ErrForeign, root)
		}
		reason += ", and it shows " + root
	}
	return fmt.Errorf("%s is %w (%s); stop that kubelet and move the folder away: umiak needs the path", f.At,
		ErrForeign, reason)
}

// checkPlace returns an error if the data folder is below its fixed path, which would cover it.
func (f Folder) checkPlace(at string) error {
	data := f.Data
	for dir := data; ; dir = filepath.Dir(dir) { // an existing parent may be a link
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			data = filepath.Join(real, strings.TrimPrefix(data, dir))
			break
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	if strings.HasPrefix(data+"/", at+"/") {
		return fmt.Errorf("data-dir: %s is below %s, where umiak mounts it; set another data-dir", data, at)
	}
	return nil
}

// Shown reports whether the folder is mounted at its path. A symbolic link does not count: it would dangle inside a
// pod.
func (f Folder) Shown() (bool, error) {
	st, err := os.Lstat(f.At)
	if errors.Is(err, fs.ErrNotExist) || err == nil && st.Mode()&fs.ModeSymlink != 0 {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("inspect %s: %w", f.At, err)
	}
	return f.same()
}

// same reports whether both paths lead to the same folder.
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

// Show creates both folders and mounts the data folder at its path, as a shared mount. It records in the journal what
// it creates outside the data directory. It may be called again.
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
	if f.migrate != nil {
		if err := f.migrate(f, j); err != nil {
			return err
		}
	}
	_, below, err := host.Mounts(f.Data)
	if err != nil {
		return err
	}
	if len(below) > 0 {
		// These are mounts of pods that started before the folder was mounted, or a user's disk. With a recursive
		// mount, later mounts appear at both paths, so that an older build finds them too.
		return f.mount(unix.MS_REC)
	}
	return f.mount(0)
}

// place creates the mount point. It replaces a symbolic link to the data, which users of older builds created.
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

// uncover unmounts mounts of removed folders, for example of an earlier data directory, from the path.
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

// Hide unmounts the folder from its path, with all mounts in it, and calls report for each. Mounts in the data folder
// itself stay.
func (f Folder) Hide(report func(mountpoint string)) error {
	for range 16 { // bound: it is mounted once or twice
		at, _, err := host.Mounts(f.At)
		if err != nil || len(at) == 0 {
			return err
		}
		top := at[len(at)-1]
		if data, err := f.showsData(top); err != nil || !data {
			return err
		}
		// Mounts in the data are visible here too, and unmounting a shared mount would unmount them there.
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

// showsData reports whether the topmost mount at the path shows the data, even if the data folder has been removed.
func (f Folder) showsData(top *mountinfo.Info) (bool, error) {
	if data, err := filepath.EvalSymlinks(f.Data); err == nil && data == top.Mountpoint {
		return false, nil // the path is a link to the data, on which a user's disk is mounted
	}
	if host.Deleted(top) {
		tail := filepath.Join(filepath.Base(filepath.Dir(f.Data)), filepath.Base(f.Data))
		return strings.HasSuffix(strings.TrimSuffix(top.Root, "//deleted"), "/"+tail), nil
	}
	return f.same()
}

// mount binds the data to the path and makes the mount shared.
func (f Folder) mount(recursive uintptr) error {
	if err := unix.Mount(f.Data, f.At, "", unix.MS_BIND|recursive, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	var err error
	if recursive == 0 {
		// Otherwise each volume of a pod would be mounted twice if the data is on a shared mount.
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

// share makes the mount at the path shared again, if someone has changed that.
func (f Folder) share() error {
	m, _, err := host.Mounts(f.At)
	if err != nil || len(m) == 0 || strings.Contains(m[len(m)-1].Optional, "shared:") {
		return err
	}
	return unix.Mount("", f.At, "", unix.MS_SHARED|unix.MS_REC, "")
}

// migrateDevicePlugins moves the folder of the device plugins' sockets, which older builds kept at the fixed path, into
// the data. Running plugins have the folder itself mounted, so they keep working.
func migrateDevicePlugins(f Folder, j *host.Journal) error {
	from, to := filepath.Join(f.At, "device-plugins"), filepath.Join(f.Data, "device-plugins")
	created := false
	for _, p := range j.State().Made[host.KindPath] {
		created = created || p == from
	}
	if !created {
		return nil
	}
	if _, err := os.Lstat(from); err != nil {
		return nil
	}
	if err := os.RemoveAll(to); err != nil {
		return fmt.Errorf("remove old device plugins folder: %w", err)
	}
	err := os.Rename(from, to)
	if errors.Is(err, unix.EXDEV) {
		return nil // on another disk, plugins register again when they restart
	}
	if err != nil {
		return fmt.Errorf("move device plugins: %w", err)
	}
	return j.Gone(host.KindPath, from)
}
