package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/e2e/cluster"
)

// obstacle is something in a machine's surroundings that a node cannot do without, or does not expect.
//
// A row of TestHostileSurroundings starts a node on such a machine: the API answers, `umiak status` and `umiak check`
// say what is wrong, and when the obstacle goes, everything becomes ready in the same process.
type obstacle struct {
	name     string // of the test and, as far as it is one, of the machine
	settings map[string]string
	env      []string // for umiak
	host     string   // the machine's name; default name
	// arrange puts the obstacle in place, on a machine that is on and where umiak does not run.
	arrange func(e *env)
	// says are words that `umiak status` prints while the obstacle is there, all in one line; none where nothing is in
	// the way in the end: then everything becomes ready with it.
	says []string
	// check are words of one line of `umiak check`, run beforehand; none where it has nothing to say.
	check []string
	// remove takes the obstacle away. It is needed where says is set.
	remove func(e *env)
	// with is what the node can do nevertheless, while the obstacle is there.
	with func(e *env)
	// then is what it can do in the end.
	then func(e *env)
}

// hostile are at most this many nodes at once: they start beside each other on few cores.
var hostile = make(chan struct{}, 2)

func TestHostileSurroundings(t *testing.T) {
	for _, o := range obstacles() {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			hostile <- struct{}{}
			t.Cleanup(func() { <-hostile })
			o.run(t)
		})
	}
}

func (o obstacle) run(t *testing.T) {
	host := o.host
	if host == "" {
		host = strings.ReplaceAll(o.name, " ", "-")
	}
	e := off(t, cluster.Options{Name: host, Settings: o.settings, Env: o.env, Images: []string{}})
	if o.arrange != nil {
		o.arrange(e)
	}
	if len(o.check) > 0 {
		out, err := e.Umiak(e.soon(), "check")
		if l := lineWith(out, o.check); l == "" || strings.HasPrefix(l, "OK") {
			t.Errorf("check does not say %q: %v\n%s", o.check, err, out)
		}
	}
	e.must(e.Start())
	e.must(e.APIReady(e.soon()))
	pid := e.PID()
	if len(o.says) > 0 {
		e.statusSays(o.says...)
		if o.with != nil {
			o.with(e)
		}
		o.remove(e)
	}
	e.allReady()
	e.must(e.NodeReady(e.soon()))
	if e.PID() != pid {
		t.Errorf("process %d became %d", pid, e.PID())
	}
	if o.then != nil {
		o.then(e)
	}
}

// lineWith is the first line that has all the words.
func lineWith(text string, words []string) string {
next:
	for l := range strings.Lines(text) {
		for _, w := range words {
			if !strings.Contains(l, w) {
				continue next
			}
		}
		return l
	}
	return ""
}

// statusSays waits until a line of `umiak status` has all the words.
func (e *env) statusSays(words ...string) {
	e.Helper()
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		out, err := e.Umiak(ctx, "status")
		if lineWith(out, words) == "" {
			return fmt.Errorf("no line of status has %q: %w\n%s", words, err, out)
		}
		if err == nil {
			return fmt.Errorf("status ends with 0\n%s", out)
		}
		return nil
	}))
}

// allReady waits until `umiak status` says that every part is, in the process that was started.
func (e *env) allReady() {
	e.Helper()
	e.must(cluster.Eventually(e.within(2*patience), func(ctx context.Context) error {
		out, err := e.Umiak(ctx, "status", "-o", "json")
		var r struct {
			Ready    bool
			Sections []struct {
				Name string
				Rows []struct{ Name, State, Detail string }
			}
		}
		if e := json.Unmarshal([]byte(out), &r); e != nil {
			return fmt.Errorf("%w: %w", err, e)
		}
		for _, s := range r.Sections {
			if s.Name == "Restarted" && len(s.Rows) > 0 {
				return fmt.Errorf("it was restarted: %v", s.Rows)
			}
			for _, row := range s.Rows {
				if s.Name == "Parts" && row.State != "ready" {
					err = fmt.Errorf("%s %s: %s", row.Name, row.State, row.Detail)
				}
			}
		}
		if !r.Ready && err == nil {
			err = fmt.Errorf("not ready: %s", out)
		}
		return err
	}))
}

// hold has a program of the machine listen on a port, and returns what ends it.
func (e *env) hold(port string) (release func()) {
	e.Helper()
	cmd := e.M.Command(e.Context(), "busybox", "nc", "-ll", "-p", port, "-e", "/bin/true")
	e.must(e.M.Start(cmd))
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		c, err := e.M.Dial(ctx, "tcp", "127.0.0.1:"+port)
		if err == nil {
			err = c.Close()
		}
		return err
	}))
	done := false
	release = func() {
		if !done {
			done = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	e.Cleanup(release)
	return release
}

// held is the row of a port that a program of the host has.
func held(port, part string) obstacle {
	var release func()
	return obstacle{
		name: "port " + port + " held", check: []string{"port " + port, "busybox"}, says: []string{part, "retrying", port, "busybox"},
		arrange: func(e *env) { release = e.hold(port) }, remove: func(*env) { release() },
	}
}

// sh runs a script in the machine.
func (e *env) sh(script string) {
	e.Helper()
	_, err := e.M.Run(e.soon(), "sh", "-euc", script)
	e.must(err)
}

// dev gives the machine a /dev of its own with these devices; the host's is at /run/olddev.
func (e *env) dev(names string) {
	e.Helper()
	e.sh(`mkdir /run/olddev /run/dev
mount --rbind /dev /run/olddev
mount -t tmpfs -o mode=755 tmpfs /run/dev
cd /run/olddev
for n in ` + names + `; do [ ! -e $n ] || cp -a $n /run/dev/; done
for d in pts shm mqueue; do [ ! -d $d ] || { mkdir /run/dev/$d; mount --rbind $d /run/dev/$d; }; done
ln -s /proc/self/fd /run/dev/fd
mount --rbind /run/dev /dev`)
}

// obstacles are the rows. Each has a machine of its own.
func obstacles() []obstacle {
	return append(netObstacles(), []obstacle{
		held("10250", "kubelet"),
		held("5001", "sharing"),
		oddDataDir("data-dir a link, no shared mounts", "linked", "cd /var/lib; mkdir disk; mv umiak disk/data 2>/dev/null || mkdir disk/data; ln -s disk/data umiak; mount --make-rprivate /"),
		oddDataDir("data-dir a mount", "mounted", "mkdir -p /var/lib/umiak; mount --bind /var/lib/umiak /var/lib/umiak"),
		{
			name: "no kmsg", check: []string{"kernel log", "kmsg"}, says: []string{"kubelet", "retrying", "/dev/kmsg"},
			arrange: func(e *env) { e.dev("null zero full random urandom tty fuse ptmx") },
			remove:  func(e *env) { e.sh("touch /dev/kmsg; mount --bind /run/olddev/kmsg /dev/kmsg") },
		},
	}...)
}
