package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

type native struct {
	Bucket string   `key:"bucket" usage:"bucket"`
	Key    string   `key:"access-key" usage:"key"`
	Secret string   `key:"secret-key" secret:"true" usage:"key"`
	Level  string   `key:"log-level" default:"info" values:"debug,info" usage:"log"`
	Off    bool     `key:"disable-snapshots" usage:"none"`
	NoS3   bool     `key:"disable-s3" usage:"none"`
	Names  []string `key:"names" usage:"names"`
	Args   []string `key:"engine-arg" usage:"flags"`
	Server string   `key:"server" usage:"URL"`
}

var otherProgram = Foreign{Program: "elder", FileEnv: "ELDER_FILE", EnvPrefix: "ELDER_", Keys: []ForeignKey{
	{Key: "server", Short: "s", Env: []string{"ELDER_URL"}},
	{Key: "s3-bucket", Effect: OtherKey, To: "bucket"},
	{Key: "s3-key", Effect: OtherKey, To: "access-key"},
	{Key: "s3-secret", Effect: OtherKey, To: "secret-key"},
	{Key: "no-snapshots", Effect: OtherKey, To: "disable-snapshots", Form: Switch},
	{Key: "snapshots", Effect: OtherKey, To: "disable-snapshots", Form: Switch, Invert: true},
	{Key: "s3", Effect: OtherKey, To: "disable-s3", Form: Switch, Invert: true, Enables: []string{"access-key"}},
	{Key: "aliases", Effect: OtherKey, To: "names"},
	{Key: "motor-arg", Effect: OtherKey, To: "engine-arg"},
	{Key: "debug", Effect: OtherKey, To: "log-level", Form: Switch, Value: "debug", Env: []string{"ELDER_DEBUG"}},
	{Key: "encrypt", Effect: NoEffect, Form: Switch, Reason: "it always is"},
	{Key: "space", Effect: NoEffect, Reason: "there is none", Servers: true},
	{Key: "docker", Effect: Refused, Form: Switch, Reason: "it is built in"},
	{Key: "old-name", Effect: Refused, Reason: "set names", Env: []string{"ELDER_OLD"}},
	{Key: "proxy", Form: Switch, Servers: true},
}}

// foreign loads a file, variables and flags with the other program's names.
func foreign(t *testing.T, table Foreign, file string, args ...string) (n native, s Settings, err error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	app := &cli.App{Flags: Flags(&n, table), Action: func(c *cli.Context) error {
		s, err = Load(c, &n, table)
		return nil
	}}
	if e := app.Run(append([]string{"umiak", "--config", path}, args...)); e != nil {
		t.Fatal(e)
	}
	return n, s, err
}

func TestForeignNamesInEverySource(t *testing.T) {
	want := native{Bucket: "b", Level: "debug", Off: true, Names: []string{"a", "c"}, Args: []string{"x=1,2", "y=3"},
		Server: "https://a"}
	check := func(source string, got native, s Settings, err error) {
		t.Helper()
		if err != nil || got.Bucket != want.Bucket || got.Level != want.Level || !got.Off ||
			!slices.Equal(got.Names, want.Names) || !slices.Equal(got.Args, want.Args) || got.Server != want.Server {
			t.Errorf("%s: %+v, %v", source, got, err)
		}
		if s.Source("bucket") == FromDefault || s.Source("log-level") == FromDefault {
			t.Errorf("%s: the source of a setting is not recorded", source)
		}
	}
	n, s, err := foreign(t, otherProgram,
		"s3-bucket: b\ndebug: true\nno-snapshots: yes\naliases: a\naliases+: [c]\nmotor-arg: ['x=1,2', y=3]\n"+
			"s: https://a\n")
	check("YAML", n, s, err)
	n, s, err = foreign(t, otherProgram, "", "--s3-bucket", "b", "--debug", "--no-snapshots", "--aliases=a,c",
		"--motor-arg", "x=1,2", "--motor-arg", "y=3", "-s", "https://a")
	check("flags", n, s, err)
	for name, v := range map[string]string{"UMIAK_S3_BUCKET": "b", "ELDER_DEBUG": "true", "UMIAK_NO_SNAPSHOTS": "on",
		"UMIAK_ALIASES": "a,c", "UMIAK_MOTOR_ARG": "x=1,2\ny=3", "ELDER_URL": "https://a"} {
		t.Setenv(name, v)
	}
	n, s, err = foreign(t, otherProgram, "bucket: of the file\nserver: https://file\n")
	check("variables", n, s, err)
	if n, _, err := foreign(t, otherProgram, "", "--server", "https://flag"); err != nil || n.Server != "https://flag" {
		t.Errorf("a flag over a variable of another name: %+v, %v", n, err)
	}
}

func TestForeignKeysWithoutEffectAndRefusedOnes(t *testing.T) {
	for _, c := range []struct{ file, unused, mistake string }{
		{"encrypt: true", ":1: encrypt has no effect: it always is", ""},
		{"encrypt: false", ":1: encrypt has no effect: it always is", ""},
		{"space: [a, true]", ":1: space has no effect: there is none", ""},
		{"docker: true", "", ":1: docker: it is built in"},
		{"docker: false", "", ""},
		{"docker: perhaps", "", `:1: docker: "perhaps" is not true or false`},
		{"debug: false\nlog-level: info", "", ""},
		{"debug: true\nlog-level: debug", "", ""},
		{"debug: true\nlog-level: info", "", ":2: log-level: this is the same setting as debug, which has another value"},
		{"s3-bucket: a\nbucket: b", "", ":2: bucket: this is the same setting as s3-bucket, which has another value"},
		{"s3-bucket: a\nbucket: a", "", ""},
		{"no-snapshots: true\nsnapshots: false", "", ""},
		{"no-snapshots: true\nsnapshots: true", "", ":2: snapshots: this is the same setting as no-snapshots"},
		{"old-name: [a, b]", "", ":1: old-name: set names"},
		{"old-name+: a", "", ":1: old-name+: set names"},
		{"proxy: true", "", ":1: proxy: umiak does not have this setting yet"},
		{"proxy: false", "", ""},
		{"s3-bukket: a", "", "no such setting; did you mean s3-bucket?"},
	} {
		_, s, err := foreign(t, otherProgram, c.file+"\n")
		if got := strings.Join(s.Unused, "\n"); c.unused == "" && got != "" || !strings.HasSuffix(got, c.unused) {
			t.Errorf("%q: without effect %q", c.file, got)
		}
		if c.mistake == "" && err != nil ||
			c.mistake != "" && (err == nil || !strings.Contains(err.Error(), c.mistake)) {
			t.Errorf("%q: %v, want %q", c.file, err, c.mistake)
		}
	}
	_, s, err := foreign(t, otherProgram, "", "--encrypt", "--space=x", "--docker", "--old-name", "a", "--proxy=no",
		"--s3-bucket", "a", "--bucket", "b")
	if want := []string{"--encrypt has no effect: it always is", "--space has no effect: there is none"}; !slices.Equal(
		s.Unused, want) {
		t.Errorf("flags without effect: %q", s.Unused)
	}
	for _, want := range []string{"--docker: it is built in", "--old-name: set names",
		"--s3-bucket: this is the same setting as --bucket, which has another value; leave one of them out"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q in %v", want, err)
		}
	}
	node := otherProgram
	node.NodeOnly = true
	_, s, err = foreign(t, node, "proxy: true\nspace: 1\n")
	if err != nil || len(s.Unused) != 2 ||
		!strings.HasSuffix(s.Unused[0], "proxy has no effect: it is a setting of servers") {
		t.Errorf("a node: %q, %v", s.Unused, err)
	}
}

func TestForeignVariables(t *testing.T) {
	t.Setenv("ELDER_OLD", "x")
	t.Setenv("ELDER_OTHER", "x")
	t.Setenv("UMIAK_SERVER", "https://a")
	t.Setenv("ELDER_URL", "https://b")
	_, s, err := foreign(t, otherProgram, "")
	for _, want := range []string{"ELDER_OLD: set names",
		"ELDER_URL: this is the same setting as UMIAK_SERVER, which has another value"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q in %v", want, err)
		}
	}
	if !slices.ContainsFunc(s.Remarks, func(r string) bool {
		return strings.HasPrefix(r, "ELDER_OTHER in the environment does nothing")
	}) {
		t.Errorf("remarks %q", s.Remarks)
	}
	path := filepath.Join(t.TempDir(), "elder.yaml")
	if err := os.WriteFile(path, []byte("names: [x]"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ELDER_FILE", path)
	var n native
	app := &cli.App{Flags: Flags(&n, otherProgram), Action: func(c *cli.Context) error {
		s, _ = Load(c, &n, otherProgram)
		return nil
	}}
	if err := app.Run([]string{"umiak"}); err != nil || s.File != path || !slices.Equal(n.Names, []string{"x"}) {
		t.Errorf("the variable that names the file: %q %+v %v", s.File, n, err)
	}
}

func TestMistakesNameWhatTheUserHasWritten(t *testing.T) {
	_, s, err := foreign(t, otherProgram, "s3-bucket: b\nnames: [x]\n", "--s3-key=k")
	if err != nil {
		t.Fatal(err)
	}
	var m Mistakes
	m.Add("bucket", "no name")
	m.Add("access-key", "no key")
	m.Add("names", "no names")
	want := "bucket: no name (set by " + s.File + ":1: s3-bucket)\naccess-key: no key (set by --s3-key)\nnames: no names"
	if got := Report(s.Locate(m.Err())); got == nil || got.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", got, want)
	}
	if err := s.Locate(nil); err != nil {
		t.Error(err)
	}
}

func TestForeignSecretsCount(t *testing.T) {
	_, s, err := foreign(t, otherProgram, "s3-secret: hunter2\n")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.File, 0o644); err != nil {
		t.Fatal(err)
	}
	all := collect([]any{&native{}, otherProgram})
	if errs := loadFile(s.File, all); len(errs) > 0 || !slices.Equal(all.findings.secretFiles, []string{s.File}) {
		t.Errorf("files with secrets: %q, %v", all.findings.secretFiles, errs)
	}
	for _, v := range s.Values() {
		if v.Key == "secret-key" && (!v.Secret || !v.Set || len(v.Texts) > 0 || v.From == "") {
			t.Errorf("%+v", v)
		}
	}
}

func TestValuesFromAnchorsAndListItems(t *testing.T) {
	n, _, err := foreign(t, otherProgram, "names: &n [a, &x c]\nserver: *x\nmotor-arg:\n  - *x\n  - v=2\n")
	if err != nil || n.Server != "c" || !slices.Equal(n.Args, []string{"c", "v=2"}) {
		t.Errorf("%+v, %v", n, err)
	}
}

// TestForeignSwitchThatIsAbsent: what the other program does only with a switch is off without it, and on where the
// setting has its name of this program.
func TestForeignSwitchThatIsAbsent(t *testing.T) {
	const reason = "s3-key has no effect: elder uses it only with s3: true"
	for _, c := range []struct {
		file string
		args []string
		off  bool
	}{
		{file: "s3-key: b", off: true},
		{args: []string{"--s3-key=b"}, off: true},
		{file: "access-key: b", args: []string{"--s3-key=c"}, off: true},
		{file: "s3-key: b\ns3: false", off: true},
		{file: "s3-key: b\ns3: true"},
		{file: "s3-key: b", args: []string{"--s3"}},
		{file: "s3-key: b\ndisable-s3: false"},
		{file: "s3-key: b", args: []string{"--access-key=c"}},
		{file: "access-key: b"},
		{file: "s3-bucket: k"},
	} {
		n, s, err := foreign(t, otherProgram, c.file+"\n", c.args...)
		named := strings.HasSuffix(strings.Join(s.Unused, "\n"), reason)
		if err != nil || n.NoS3 != c.off || named != (c.off && !strings.Contains(c.file, "s3: ")) {
			t.Errorf("%q %q: off %v, %q, %v", c.file, c.args, n.NoS3, s.Unused, err)
		}
	}
}
