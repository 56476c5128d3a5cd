package nodecmd

import (
	"fmt"
	"strings"

	ucli "github.com/urfave/cli/v2"
)

// Completion is `umiak completion SHELL`. The scripts ask the binary itself at each <TAB>, so they never
// grow old; what follows `kubectl` is asked of kubectl.
func Completion() *ucli.Command {
	scripts := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}
	return &ucli.Command{
		Name:      "completion",
		Usage:     "print the completion script of a shell",
		ArgsUsage: "bash|zsh|fish",
		Description: "  . <(umiak completion bash)\n" +
			"  umiak completion bash > /etc/bash_completion.d/umiak\n" +
			"  umiak completion fish > ~/.config/fish/completions/umiak.fish",
		BashComplete: func(c *ucli.Context) {
			if !c.Args().Present() {
				fmt.Fprintln(c.App.Writer, "bash\nzsh\nfish")
			}
		},
		Action: func(c *ucli.Context) error {
			script, ok := scripts[c.Args().First()]
			if !ok || c.NArg() != 1 {
				return Usagef(c, "completion takes one of bash, zsh, fish")
			}
			_, err := fmt.Fprint(c.App.Writer, strings.ReplaceAll(script, "PROG", c.App.Name))
			return err
		},
	}
}

const bashCompletion = `_PROG_complete() {
  local cur=${COMP_WORDS[COMP_CWORD]} out
  if [ "${COMP_WORDS[1]}" = kubectl ] && [ "$COMP_CWORD" -gt 1 ]; then
    out=$("${COMP_WORDS[0]}" kubectl __complete "${COMP_WORDS[@]:2:COMP_CWORD-2}" "$cur" 2>/dev/null | sed -e '/^:/d' -e 's/\t.*//')
  elif [[ "$cur" == -* ]]; then
    out=$("${COMP_WORDS[@]:0:COMP_CWORD}" "$cur" --generate-bash-completion 2>/dev/null)
  else
    out=$("${COMP_WORDS[@]:0:COMP_CWORD}" --generate-bash-completion 2>/dev/null)
  fi
  mapfile -t COMPREPLY < <(compgen -W "$out" -- "$cur")
}
complete -o bashdefault -o default -F _PROG_complete PROG
`

const zshCompletion = `#compdef PROG
_PROG() {
  local -a opts
  local cur=${words[CURRENT]}
  if [[ ${words[2]} == kubectl && $CURRENT -gt 2 ]]; then
    opts=(${(f)"$(${words[1]} kubectl __complete ${words[3,CURRENT-1]} "$cur" 2>/dev/null | sed -e '/^:/d' -e 's/\t.*//')"})
  elif [[ $cur == -* ]]; then
    opts=(${(f)"$(${words[1,CURRENT-1]} $cur --generate-bash-completion 2>/dev/null)"})
  else
    opts=(${(f)"$(${words[1,CURRENT-1]} --generate-bash-completion 2>/dev/null)"})
  fi
  [[ -n $opts ]] && compadd -- $opts || _files
}
compdef _PROG PROG
`

const fishCompletion = `function __PROG_complete
  set -l words (commandline -opc)
  set -l cur (commandline -ct)
  if test (count $words) -ge 2; and test $words[2] = kubectl
    $words[1] kubectl __complete $words[3..-1] "$cur" 2>/dev/null | string match -v ':*'
  else if string match -q -- '-*' $cur
    $words $cur --generate-bash-completion 2>/dev/null
  else
    $words --generate-bash-completion 2>/dev/null
  end
end
complete -c PROG -f -a '(__PROG_complete)'
`
