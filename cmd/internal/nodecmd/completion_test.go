package nodecmd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCompletionScripts has each shell that this machine has read its script, and bash complete with it.
func TestCompletionScripts(t *testing.T) {
	for shell, script := range map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion} {
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("there is no %s here", shell)
			continue
		}
		file := filepath.Join(t.TempDir(), shell)
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(script, "PROG", "umiak")), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(path, "-n", file).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v: %s", shell, err, out)
		}
		if shell != "bash" {
			continue
		}
		// The function stands in for the program, and prints how it was called.
		for line, want := range map[string]string{"umiak ": "token upgrade", "umiak to": "token",
			"umiak token create --k": "--kind", "umiak kubectl get po": "pods"} {
			words := strings.Split(line, " ")
			driver := `. ` + file + `
umiak() { case "$*" in
  "--generate-bash-completion") echo token; echo upgrade ;;
  "token create --k --generate-bash-completion") echo --kind ;;
  "kubectl __complete get po") printf 'pods\tshort\nnodes\n:4\n' ;;
  *) echo "unexpected: $*" >&2 ;; esac; }
COMP_WORDS=('` + strings.Join(words, "' '") + `') COMP_CWORD=` + string(rune('0'+len(words)-1)) + `
_umiak_complete; echo "${COMPREPLY[@]}"`
			out, err := exec.Command(path, "-c", driver).CombinedOutput()
			if err != nil || strings.TrimSpace(string(out)) != want {
				t.Errorf("%q: %s, %v", line, out, err)
			}
		}
	}
}
