package cleanup

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/internal/layout"
)

// node makes a data directory with what a node has in it.
func node(t *testing.T, d layout.Dirs) {
	t.Helper()
	for _, f := range []string{
		"lock", "node-name", "server/pki/server-ca.key", "server/token", "server/db/state.db", "server/db/lock",
		"agent/kubelet/pods-api/kubelet.sock", "agent/pki/kubelet-client.key", "agent/containerd/images.json",
		"agent/containerd/io.containerd.metadata.v1.bolt/meta.db", "agent/kubelet/cpu_manager_state",
		"agent/kubelet/pods/0f8fad5b-d9cb-469f-a165-70867728950e/etc-hosts",
		"agent/logs/pods/default_web_0f8fad5b-d9cb-469f-a165-70867728950e/c/0.log", "agent/images/app.tar",
	} {
		write(t, filepath.Join(d.Data, f))
	}
}

func write(t *testing.T, name string) string {
	t.Helper()
	mkdir(t, filepath.Dir(name))
	if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// files lists what is in a directory but for folders.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, strings.TrimPrefix(p, dir+"/"))
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return out
}

func TestPurgeLeavesWhatIsOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	link := func(t *testing.T, from, to string) {
		t.Helper()
		mkdir(t, filepath.Dir(from))
		if err := os.Symlink(to, from); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		make func(t *testing.T, d layout.Dirs) // before the node is
		then func(t *testing.T, d layout.Dirs) // after it ran
		left string                            // files in and beside the data directory
		fail string                            // what the error says; "" is none
		gone bool                              // the data directory too
	}{
		"an ordinary directory": {gone: true},
		"a disk of the user's in it": {
			make: func(t *testing.T, d layout.Dirs) { tmpfs(t, d.Data+"/backup"); write(t, d.Data+"/backup/precious") },
			left: "data/backup/precious",
		},
		"snapshots on a share": {
			make: func(t *testing.T, d layout.Dirs) {
				tmpfs(t, d.Data+"/server/snapshots")
				write(t, d.Data+"/server/snapshots/a")
			},
			left: "data/server/snapshots/a",
		},
		"images from another folder": {
			make: func(t *testing.T, d layout.Dirs) {
				write(t, filepath.Dir(d.Data)+"/home/app.tar")
				if err := unix.Mount(filepath.Dir(d.Data)+"/home", mkdir(t, d.Data+"/agent/images"), "", unix.MS_BIND,
					""); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = unix.Unmount(d.Data+"/agent/images", unix.MNT_DETACH) })
			},
			left: "data/agent/images/app.tar home/app.tar",
		},
		"manifests from a checkout": {
			make: func(t *testing.T, d layout.Dirs) {
				write(t, filepath.Dir(d.Data)+"/git/app.yaml")
				link(t, d.Data+"/server/manifests", filepath.Dir(d.Data)+"/git")
			},
			left: "git/app.yaml", gone: true,
		},
		"a disk for images": {
			make: func(t *testing.T, d layout.Dirs) {
				tmpfs(t, d.Data+"/agent/containerd")
				mkdir(t, d.Data+"/agent/containerd/lost+found")
			},
		},
		"disks for everything": {
			make: func(t *testing.T, d layout.Dirs) {
				for _, p := range []string{"", "server", "server/db", "agent", "agent/containerd", "agent/kubelet",
					"agent/logs/pods"} {
					tmpfs(t, filepath.Join(d.Data, p))
				}
			},
		},
		"a disk for images and photos": {
			make: func(t *testing.T, d layout.Dirs) {
				tmpfs(t, d.Data+"/agent/containerd")
				write(t, d.Data+"/agent/containerd/photo.jpg")
			},
			left: "data/agent/containerd/images.json data/agent/containerd/io.containerd.metadata.v1.bolt/meta.db data/agent/containerd/photo.jpg",
			fail: "photo.jpg",
		},
		"a link": {
			make: func(t *testing.T, d layout.Dirs) { link(t, d.Data, mkdir(t, filepath.Dir(d.Data)+"/disk/umiak")) },
			left: "data",
		},
		"a link to a disk with more on it": {
			make: func(t *testing.T, d layout.Dirs) {
				tmpfs(t, filepath.Dir(d.Data)+"/disk")
				write(t, filepath.Dir(d.Data)+"/disk/photo.jpg")
				link(t, d.Data, filepath.Dir(d.Data)+"/disk")
			},
			left: "data disk/photo.jpg",
		},
		"images behind a link": {
			make: func(t *testing.T, d layout.Dirs) {
				link(t, d.Data+"/agent/containerd", mkdir(t, filepath.Dir(d.Data)+"/disk"))
			},
			gone: true,
		},
		"images behind a link, with photos": {
			make: func(t *testing.T, d layout.Dirs) {
				write(t, filepath.Dir(d.Data)+"/disk/photo.jpg")
				link(t, d.Data+"/agent/containerd", filepath.Dir(d.Data)+"/disk")
			},
			left: "disk/images.json disk/io.containerd.metadata.v1.bolt/meta.db disk/photo.jpg", fail: "photo.jpg",
		},
		"a link to nowhere": {
			then: func(t *testing.T, d layout.Dirs) {
				if err := os.RemoveAll(d.Data); err != nil {
					t.Fatal(err)
				}
				link(t, d.Data, "/nowhere/at/all")
			},
			left: "data", fail: "mount its disk",
		},
		"a mount of a kubelet on itself": {
			then: func(t *testing.T, d layout.Dirs) {
				if err := errors.Join(unix.Mount(d.Kubelet(), d.Kubelet(), "", unix.MS_BIND, ""),
					unix.Mount("", d.Kubelet(), "", unix.MS_SHARED, "")); err != nil {
					t.Fatal(err)
				}
				tmpfs(t, d.Kubelet()+"/pods/u/volumes/v")
			},
			gone: true,
		},
		"a disk for volumes": {
			make: func(t *testing.T, d layout.Dirs) { tmpfs(t, d.Kubelet()+"/pods") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := dirs(t)
			mkdir(t, filepath.Dir(d.Data))
			if c.make != nil {
				c.make(t, d)
			}
			node(t, d)
			if c.then != nil {
				c.then(t, d)
			}
			var out bytes.Buffer
			err := Run(t.Context(), Config{Dirs: d, Out: &out, Purge: true})
			if c.fail == "" && err != nil || c.fail != "" && (err == nil || !strings.Contains(err.Error(), c.fail)) {
				t.Errorf("error: %v", err)
			}
			if got := strings.Join(files(t, filepath.Dir(d.Data)), " "); got != c.left {
				t.Errorf("left %s, want %s\n%s", got, c.left, out.String())
			}
			if missing(d.Data) != c.gone {
				t.Errorf("data directory: gone=%v\n%s", !c.gone, out.String())
			}
			if _, below, err := host.Mounts(d.Kubelet()); err != nil || len(below) > 0 && name != "a disk for volumes" {
				t.Errorf("still mounted: %v, %v", below, err)
			}
		})
	}
}

// TestNamesOfState compares the lists of names with the paths that the node's layout has.
func TestNamesOfState(t *testing.T) {
	d := layout.Dirs{Data: "/d", Run: "/r"}
	v := reflect.ValueOf(d)
	for i := range v.NumMethod() {
		p := v.Method(i).Call(nil)[0].String()
		rel, ok := strings.CutPrefix(p, d.Data+"/")
		if !ok {
			continue
		}
		if first, _, _ := strings.Cut(rel, "/"); !dataEntries.MatchString(first) {
			t.Errorf("%s: purge leaves %s", v.Type().Method(i).Name, first)
		}
		for dir, names := range stateFolders {
			if in, ok := strings.CutPrefix(rel, dir+"/"); ok {
				if first, _, _ := strings.Cut(in, "/"); !names.MatchString(first) {
					t.Errorf("%s: purge takes %s in %s for another's", v.Type().Method(i).Name, first, dir)
				}
			}
		}
	}
}
