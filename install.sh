#!/bin/sh
# Installs Umiak on this machine, or brings it up to date. `sh install.sh --help` says how.
# Everything is in functions and the last line calls main: a download that is cut does nothing.
set -eu

# Set by scripts/release in the copy that belongs to a release.
UMIAK_RELEASE_VERSION=''
# --- key
RELEASE_KEY=''
# --- end of key

help() {
	cat <<-'END'
	Installs Umiak as a service of this machine, or brings what is there up to date.

	  curl -sfL https://get.umiak.io | sh -                              a server, the first of a cluster
	  curl -sfL https://get.umiak.io | UMIAK_URL=https://SERVER:6443 UMIAK_TOKEN=TOKEN sh -    an agent of it
	  curl -sfL https://get.umiak.io | sh -s - server --node-ip 10.0.0.1 --tls-san pi.local    settings as flags
	  sh install.sh                                from a USB stick with the release's files beside it, or a checkout

	install.sh [--dry-run] [server|agent] [SETTING...]

	SETTINGs are the flags of `umiak server` or `umiak agent`. They are kept in /etc/umiak: a later run without them
	loses none. Your own go into /etc/umiak/config.yaml.

	UMIAK_URL, UMIAK_TOKEN          the server to join and the token; with a URL the machine becomes an agent, if
	                                nothing else is said
	UMIAK_TOKEN_FILE                a file that has the token
	UMIAK_NAME=VALUE                any setting (node-name is UMIAK_NODE_NAME), kept as well
	INSTALL_UMIAK_EXEC              role and settings, as after install.sh; in quotes where a value has spaces:
	                                INSTALL_UMIAK_EXEC='server --tls-san *.example.com --node-label "place=the shed"'
	INSTALL_UMIAK_VERSION           what to install (default: the version of this install.sh)
	INSTALL_UMIAK_BASE_URL          where releases are: https://, http://, file:/// or a folder, with a folder for each
	                                version in it. file:/// and a folder may have the files of one themselves
	INSTALL_UMIAK_SOURCE            a folder with the files of one release, for this time
	INSTALL_UMIAK_KEY_FILE          public key (PEM) of releases that you signed yourself; kept, as the base URL is
	INSTALL_UMIAK_BIN_DIR           where the program goes (default: where it is, or /usr/local/bin)
	INSTALL_UMIAK_TIMEOUT           seconds until the node must be ready (default: 300)
	INSTALL_UMIAK_SKIP_START=true   install and enable, but do not start
	INSTALL_UMIAK_SKIP_ENABLE=true  neither enable nor start
	INSTALL_UMIAK_SKIP_DOWNLOAD=true    use the program that is in BIN_DIR already
	INSTALL_UMIAK_FORCE_RESTART=true    restart the service, even if nothing has changed
	INSTALL_UMIAK_SYMLINK=skip|force    no links kubectl, crictl and ctr beside the program (skip), or also where the shell
	                                finds another program of that name (force); kept. A file that is there already stays
	INSTALL_UMIAK_SKIP_CHECK=true   go on where `umiak check` finds something missing
	INSTALL_UMIAK_ALLOW_OLDER=true  install a release that is older than the one that is here
	INSTALL_UMIAK_ONLY=program      the program alone: nothing else of a bundle, and no other place for releases is kept

	K3S_URL, K3S_TOKEN, K3S_NAME=VALUE and INSTALL_K3S_NAME mean what they mean for k3s. Those that would mean something
	else here are refused; those without an effect are named.

	HTTPS_PROXY, HTTP_PROXY, NO_PROXY    kept for the service, and for what this script downloads later
	Settings are kept in the files of /etc/umiak, and service and commands (umiak status, uninstall …) read them there.

	--dry-run         say what would be done, and do nothing
	--print-unit ROLE the systemd unit of a server or an agent
	--settings-read   for the unit: note which settings the service starts with
	Programs are checked by SHA-256 and by the signature of the release before anything is touched. When the new version does
	not become ready, the old one is put back. `umiak upgrade` runs this again, `umiak uninstall` takes everything away.
	END
}

say() { printf '%s\n' "umiak: $*"; }
warn() { printf '%s\n' "umiak: $*" >&2; }
die() {
	warn "$1"
	shift
	for line; do printf '       %s\n' "$line" >&2; done
	exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }
# durable FILE...: on the disk. Where sync cannot do one file, it does all.
durable() { sync "$@" 2>/dev/null || sync; }

TAB=$(printf '\t')
ETC=/etc/umiak
OWN=$ETC/config.yaml.d/50-install.yaml # settings that were given to this script
ENVIRONMENT=$ETC/umiak.env             # UMIAK_NAME=VALUE and proxies that were given to it
INSTALLED=$ETC/installed               # the files that it made, for umiak uninstall
AGAIN=$ETC/install.sh                  # itself, for umiak upgrade
OWN_KEY=$ETC/release.pem               # a key that was given to it
BUNDLED=$ETC/config.yaml.d/40-bundle.yaml # settings of a bundle
UNFINISHED=$ETC/unfinished             # takes back a version that is not ready yet; umiak removes it when it is
WORKING=/run/umiak-install             # which process installs; gone after a power loss
IN_USE=/run/umiak-settings             # the sum of the settings that the service has started with

main() {
	dry='' role='' stage='' switching='' changed='' only_program='' exact='' DATA_DIR=/var/lib/umiak
	case ${INSTALL_UMIAK_ONLY:-} in
	'') ;;
	program) only_program=yes ;;
	*) die "INSTALL_UMIAK_ONLY=$INSTALL_UMIAK_ONLY: there is only program" ;;
	esac
	with_sudo=$(as_root "$@")
	from_k3s
	for name in SKIP_START SKIP_ENABLE SKIP_DOWNLOAD FORCE_RESTART SKIP_CHECK ALLOW_OLDER; do
		eval "value=\${INSTALL_UMIAK_$name:-}"
		case $value in
		'' | true | false) ;;
		*) die "INSTALL_UMIAK_$name=$value: say true or false" ;;
		esac
	done
	case ${INSTALL_UMIAK_TIMEOUT:-1} in
	*[!0-9]* | 0*) die "INSTALL_UMIAK_TIMEOUT=$INSTALL_UMIAK_TIMEOUT: say a number of seconds, such as 300" ;;
	esac
	case ${INSTALL_UMIAK_SYMLINK:-} in
	'' | skip | force) ;;
	*) die "INSTALL_UMIAK_SYMLINK=$INSTALL_UMIAK_SYMLINK is neither skip nor force" ;;
	esac
	if [ -n "${INSTALL_UMIAK_EXEC:-}" ]; then
		words "$INSTALL_UMIAK_EXEC" >/dev/null || die "INSTALL_UMIAK_EXEC=$INSTALL_UMIAK_EXEC: its quotes do not match"
		eval "set -- $(words "$INSTALL_UMIAK_EXEC")"' "$@"' # each word is in quotes
	fi
	for arg; do
		case $arg in
		-h | --help) help; exit 0 ;;
		--dry-run) dry=yes ;;
		esac
	done
	while [ $# -gt 0 ]; do
		case $1 in
		--dry-run) ;;
		--print-unit) bin_dir; unit "${2:?--print-unit takes server or agent}"; exit 0 ;;
		--settings-read) umask 077; settings_sum >$IN_USE; exit 0 ;;
		server | agent) [ -z "$role" ] || break; role=$1 ;;
		-*) break ;;
		*) die "unknown argument $1" "sh install.sh --help shows what there is" ;;
		esac
		shift
	done
	[ "$(uname -s)" = Linux ] || die "this is $(uname -s); Umiak runs on Linux"
	[ -n "$dry" ] || [ "$(id -u)" = 0 ] || die "this must be run as root" "curl -sfL … | $with_sudo"
	has sha256sum || die "sha256sum is missing, which checks what is downloaded" "install coreutils"
	bin_dir
	architecture
	init_system
	decide_role
	trap 'rc=$?; leave $rc' EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
	make_stage
	collect "$@"
	use_proxies
	find_source
	get_program
	try_program
	if [ -n "$dry" ]; then
		report
		exit 0
	fi
	install_all
	start
	next_step
}

# words TEXT: its words, each in quotes for the shell. Quotes in it keep a word together, a backslash outside of them keeps
# the next character; nothing else means anything.
words() {
	case $1 in *[![:space:]]*) ;; *) return 0 ;; esac
	out=$(printf '%s\n' "$1" | xargs -n 1 printf '%s\n' 2>/dev/null && echo end) || return 1
	printf '%s\n' "$out" | sed "\$d; s/'/'\\\\''/g; s/^/'/; s/\$/'/" | tr '\n' ' '
}

# from_k3s takes the variables of k3s' installer and of k3s under the names that they have here.
from_k3s() {
	ignored=''
	for v in $(env | sed -n 's/^\(\(INSTALL_\)\{0,1\}K3S_[A-Z0-9_]*\)=..*/\1/p' | sort -u); do
		eval "value=\$$v"
		to=''
		case $v in
		INSTALL_K3S_EXEC | INSTALL_K3S_BIN_DIR | INSTALL_K3S_SKIP_START | INSTALL_K3S_SKIP_ENABLE | \
			INSTALL_K3S_SYMLINK | INSTALL_K3S_FORCE_RESTART) to=INSTALL_UMIAK_${v#INSTALL_K3S_} ;;
		INSTALL_K3S_SKIP_DOWNLOAD)
			to=INSTALL_UMIAK_SKIP_DOWNLOAD
			case $value in
			binary) value=true ;;
			selinux) to='' ignored="$ignored $v" ;;
			esac
			;;
		INSTALL_K3S_VERSION)
			case $value in
			*k3s*) die "$v=$value is a release of k3s" "unset it, or set INSTALL_UMIAK_VERSION to one of Umiak" ;;
			esac
			to=INSTALL_UMIAK_VERSION
			;;
		INSTALL_K3S_CHANNEL)
			case $value in
			stable | latest) ignored="$ignored $v" ;;
			*) die "$v=$value: there are no channels here" "set INSTALL_UMIAK_VERSION to a release" ;;
			esac
			;;
		INSTALL_K3S_CHANNEL_URL | INSTALL_K3S_COMMIT | INSTALL_K3S_PR) die "$v names builds of k3s" \
			"set INSTALL_UMIAK_VERSION, and INSTALL_UMIAK_BASE_URL where releases of Umiak are elsewhere" ;;
		INSTALL_K3S_NAME) die "$v=$value: a machine has one service, umiak or umiak-agent" "unset it" ;;
		INSTALL_K3S_SYSTEMD_DIR) [ "${value%/}" = /etc/systemd/system ] ||
			die "$v=$value: the unit goes into /etc/systemd/system" "unset it" ;;
		INSTALL_K3S_BIN_DIR_READ_ONLY) [ "$value" != true ] ||
			die "$v=true: an update replaces the program" "set INSTALL_UMIAK_BIN_DIR to a folder that can be written" ;;
		INSTALL_K3S_TYPE | INSTALL_K3S_SELINUX_WARN | INSTALL_K3S_SKIP_SELINUX_RPM) ignored="$ignored $v" ;;
		INSTALL_*) die "$v is no variable of k3s' installer that this one knows" "unset it; sh install.sh --help shows those that there are" ;;
		K3S_CONFIG_FILE) to=UMIAK_CONFIG ;;
		K3S_KUBECONFIG_OUTPUT) to=UMIAK_WRITE_KUBECONFIG ;;
		K3S_KUBECONFIG_*) to=UMIAK_WRITE_${v#K3S_} ;;
		K3S_DEBUG)
			[ "$value" != true ] || to=UMIAK_LOG_LEVEL
			value=debug
			;;
		*) to=UMIAK_${v#K3S_} ;;
		esac
		unset "$v"
		[ -n "$to" ] || continue
		eval "have=\${$to:-}"
		[ -z "$have" ] || [ "$have" = "$value" ] || die "$v and $to are set to different values" "unset one of them"
		export "$to=$value"
	done
	[ -z "$ignored" ] || say "without effect here:$ignored"
}

# as_root [ARG...]: how sudo runs this with the same arguments, and the variables that it would drop. It shows no token.
as_root() {
	kept=$(env | sed -n 's/^\(\(INSTALL_\)\{0,1\}\(UMIAK\|K3S\)_[A-Z0-9_]*\|[A-Za-z]*_PROXY\|[a-z]*_proxy\)=..*/\1/p' | sort | tr '\n' ',')
	printf 'sudo %ssh -' "${kept:+--preserve-env=${kept%,} }"
	[ $# = 0 ] || printf 's -'
	for arg; do
		case $arg in
		--token* | *::*) printf ' …'; return ;;
		*[!a-zA-Z0-9/:=.,_-]*) printf ' %s' "$(quote_sh "$arg")" ;;
		*) printf ' %s' "$arg" ;;
		esac
	done
}

# bin_dir sets BIN_DIR, and OLD to the program that is there, perhaps in another folder.
bin_dir() {
	OLD=$(sed -n '/\/umiak$/p; /\/umiak-agent$/p' "$INSTALLED" 2>/dev/null | sed -n '/^\/etc\//!p' | head -n 1)
	BIN_DIR=${INSTALL_UMIAK_BIN_DIR:-${OLD%/*}}
	BIN_DIR=${BIN_DIR:-/usr/local/bin}
	case $BIN_DIR in
	*[!a-zA-Z0-9/._-]*) die "INSTALL_UMIAK_BIN_DIR=$BIN_DIR: only letters, digits, / . _ and - can be in it" ;;
	/*) ;;
	*) die "INSTALL_UMIAK_BIN_DIR=$BIN_DIR is not an absolute path" ;;
	esac
	[ "$BIN_DIR" = / ] || BIN_DIR=${BIN_DIR%/}
}

# settings_sum: a sum of all settings that the service reads when it starts.
settings_sum() {
	for f in $ETC/config.yaml $ETC/config.yaml.d/*.yaml $ETC/config.yaml.d/*.yml $ENVIRONMENT $ETC/token; do
		[ ! -r "$f" ] || { printf '%s\n' "$f"; cat "$f"; }
	done | sha256sum
}

architecture() {
	case $(uname -m) in
	x86_64 | amd64) ARCH=amd64 ;;
	aarch64 | arm64) ARCH=arm64 ;;
	armv7* | armv8l | armhf) ARCH=arm ;;
	riscv64) ARCH=riscv64 ;;
	*) die "there is no Umiak for $(uname -m)" "there is for x86_64, aarch64, armv7 and riscv64" ;;
	esac
	# A 64 bit kernel with a 32 bit system, as on many a Raspberry Pi: the programs are static, either runs.
}

init_system() {
	INIT=none
	if [ -d /run/systemd/system ]; then
		INIT=systemd
	elif has rc-service && has openrc-run; then
		INIT=openrc
	fi
}

unit_file() {
	case $INIT in
	systemd) echo "/etc/systemd/system/$1.service" ;;
	openrc) echo "/etc/init.d/$1" ;;
	esac
}

decide_role() {
	was=''
	if [ -s "$INSTALLED" ]; then
		was=server
		if grep -q '/umiak-agent$' "$INSTALLED"; then was=agent; fi
	fi
	if [ -z "$role" ]; then
		role=$was
		[ -n "$role" ] || if [ -n "${UMIAK_URL:-}${UMIAK_SERVER:-}" ]; then role=agent; else role=server; fi
	fi
	[ -z "$was" ] || [ "$was" = "$role" ] || die "this machine has been installed as $was, not as $role" \
		"to change that, first run: umiak uninstall"
	for f in umiak umiak-agent; do
		[ ! -e /usr/lib/systemd/system/$f.service ] || die "$f is installed as a package here" \
			"update it with the package manager, or remove it first"
	done
	if [ "$role" = agent ]; then NAME=umiak-agent; else NAME=umiak; fi
	PROGRAM=$BIN_DIR/$NAME
	UNIT=$(unit_file $NAME)
}

# make_stage makes the folder where everything is prepared, on the file system of the program, so that it takes its
# place by a rename. What an earlier run left there, when the power went, is taken away.
make_stage() {
	[ -z "$dry" ] || { stage=$(mktemp -d) && : >"$stage/bundle"; return 0; }
	if works; then die "another install.sh is at work, process $(cut -d ' ' -f 1 $WORKING)"; fi
	mkdir -p "$BIN_DIR" 2>/dev/null || die "cannot make $BIN_DIR" "set INSTALL_UMIAK_BIN_DIR to a folder that can be written"
	if [ -e $UNFINISHED ]; then
		sh $UNFINISHED
		changed=yes # what runs is not what is there now
	fi
	for f in "$BIN_DIR"/.umiak-install.*/plan; do
		[ ! -r "$f" ] || while IFS=$TAB read -r _ to _ old; do rm -f "$to.umiak-new" "$old"; done <"$f"
	done
	rm -rf "$BIN_DIR"/.umiak-install.* $UNFINISHED.new
	stage=$(mktemp -d "$BIN_DIR/.umiak-install.XXXXXX") ||
		die "cannot write to $BIN_DIR" "is it read-only or full? Set INSTALL_UMIAK_BIN_DIR to another folder"
	chmod 700 "$stage"
	: >"$stage/bundle"
}

# leave runs at every end of the script.
leave() {
	trap - EXIT
	trap '' HUP INT TERM # the signal that ended it may come twice: from the terminal and from umiak upgrade
	[ "$1" = 0 ] || [ -z "$switching" ] || roll_back
	[ -z "$stage" ] || rm -rf "$stage"
	if [ -z "$dry" ] && works $$; then rm -f $WORKING; fi
	exit "$1"
}

# born PID: when the process began, which no other has of the same number.
born() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }

# works [PID] says whether the process that WORKING names runs, and is this one.
works() {
	{ read -r who since <$WORKING; } 2>/dev/null && [ -n "$since" ] && [ "$(born "$who")" = "$since" ] && [ "${1:-$who}" = "$who" ]
}

# --- settings

# quote and quote_sh put quotes around a value, for YAML and for a shell.
quote() { printf "'%s'" "$(printf %s "$1" | sed "s/'/''/g")"; }
quote_sh() { printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")"; }

# without KEY: FILE less the key and its list.
without() { KEY=$1: awk '$1 == ENVIRON["KEY"] && /^[a-z]/ { skip = 1; next } /^[^ ]/ { skip = 0 } !skip' "$2"; }

# keep KEY [VALUE]: the key is a list when it comes twice in one run. Without a value it is true, which the program takes for
# settings that are true or false alone.
keep() {
	value=true
	[ $# -eq 1 ] || value=$(quote "$2")
	case ${2-} in *"
"*) die "$1: a value of more than one line cannot be kept" "put it into $ETC/config.yaml" ;; esac
	case $1 in
	config) die "--config cannot be kept: commands would not find that file" "put the settings into $ETC/config.yaml" ;;
	token)
		[ $# -gt 1 ] || die "--token needs a value"
		umask 077
		printf '%s\n' "$2" >"$stage/token"
		set -- token-file $ETC/token
		value=$(quote $ETC/token)
		;;
	esac
	if grep -q "^$1:\$" "$stage/given"; then
		# Not in arguments, which everybody on the machine can read.
		KEY=$1: VALUE="  - $value" awk '{ print } $0 == ENVIRON["KEY"] { print ENVIRON["VALUE"] }' "$stage/given" >"$stage/new"
	else
		{ cat "$stage/given"; printf '%s:\n  - %s\n' "$1" "$value"; } >"$stage/new"
	fi
	mv "$stage/new" "$stage/given"
}

# collect makes the files of settings, out of those that are there and what was given now.
collect() {
	umask 077
	: >"$stage/given"
	: >"$stage/own"
	: >"$stage/env"
	[ ! -r $OWN ] || cat $OWN >"$stage/own"
	[ ! -r $ENVIRONMENT ] || cat $ENVIRONMENT >"$stage/env"
	[ -z "${UMIAK_URL:-}" ] || keep server "$UMIAK_URL"
	[ -z "${UMIAK_TOKEN:-}" ] || keep token "$UMIAK_TOKEN"
	while [ $# -gt 0 ]; do
		case $1 in
		--dry-run) ;;
		-[cdiost] | -[cdiost]=*) # k3s' short names
			case $1 in
			-c*) long=config ;;
			-d*) long=data-dir ;;
			-i*) long=node-ip ;;
			-o*) long=write-kubeconfig ;;
			-s*) long=server ;;
			-t*) long=token ;;
			esac
			case $1 in *=*) long=$long=${1#*=} ;; esac
			shift
			set -- "--$long" "$@"
			continue
			;;
		--*=*)
			key=${1%%=*}
			keep "${key#--}" "${1#*=}"
			;;
		--?*)
			key=${1#--}
			if [ $# -eq 1 ]; then keep "$key"; else
				case $2 in
				--*) keep "$key" ;;
				*) keep "$key" "$2"; shift ;; # '' is a value as well
				esac
			fi
			;;
		*) die "unknown argument $1" "settings are --NAME VALUE or --NAME=VALUE" ;;
		esac
		shift
	done
	# keep puts the last value first. One alone is no list.
	awk '/^[^ ]/ { flush(); k = $0; n = 0; next } { v[++n] = $0 } END { flush() }
		function flush(  i) {
			if (n == 1) { sub(/^  - /, "", v[1]); print k, v[1] }
			if (n > 1) { print k; for (i = n; i > 0; i--) print v[i] }
			n = 0
		}' "$stage/given" >"$stage/settings"
	# shellcheck disable=SC2013 # keys are words
	for key in $(awk -F: '/^[a-z]/ { print $1 }' "$stage/settings"); do
		without "$key" "$stage/own" >"$stage/new"
		mv "$stage/new" "$stage/own"
		forget_variable "UMIAK_$(printf %s "$key" | tr 'a-z-' 'A-Z_')"
	done
	cat "$stage/settings" >>"$stage/own"
	variables
	{
		echo "# By install.sh, which keeps what it is not given anew. Your own settings: $ETC/config.yaml."
		# In one order, whatever was given when: the same settings are the same file, which needs no restart.
		awk '/^#/ { next } /^[^ ]/ { if (r) print r; r = $0; next } { r = r "\001" $0 } END { if (r) print r }' "$stage/own" | sort | tr '\001' '\n'
	} >"$stage/new"
	mv "$stage/new" "$stage/own"
	sort "$stage/env" >"$stage/new"
	mv "$stage/new" "$stage/env"
}

forget_variable() {
	grep -v "^$1=" "$stage/env" >"$stage/new" || :
	mv "$stage/new" "$stage/env"
}

# variables keeps UMIAK_* and the proxies in the service's environment, where they mean what they meant here, and the
# place of releases and the choice of links for the next time.
variables() {
	for v in $(env | sed -n 's/^\(UMIAK_[A-Z0-9_]*\|INSTALL_UMIAK_BASE_URL\|INSTALL_UMIAK_SYMLINK\|HTTP_PROXY\|HTTPS_PROXY\|NO_PROXY\|http_proxy\|https_proxy\|no_proxy\)=.*/\1/p' | sort -u); do
		case $v in
		UMIAK_URL | UMIAK_TOKEN | UMIAK_RELEASE_VERSION) continue ;;
		INSTALL_UMIAK_BASE_URL) [ -z "$only_program" ] || continue ;;
		UMIAK_CONFIG) die "UMIAK_CONFIG cannot be kept: commands would not find that file" "put the settings into $ETC/config.yaml" ;;
		esac
		eval "value=\$$v"
		case $value in *\'* | *"
"*) die "$v has a quote or a line's end in it, which its file cannot have" "put it into $ETC/config.yaml" ;; esac
		forget_variable "$v"
		case $v in
		*_PROXY) forget_variable "$(printf %s "$v" | tr A-Z a-z)" ;; # of both spellings the last one given counts
		*_proxy) forget_variable "$(printf %s "$v" | tr a-z A-Z)" ;;
		esac
		[ -n "$value" ] || continue
		printf "%s='%s'\n" "$v" "$value" >>"$stage/env"
		key=$(printf %s "${v#UMIAK_}" | tr 'A-Z_' 'a-z-')
		without "$key" "$stage/own" >"$stage/new"
		mv "$stage/new" "$stage/own"
	done
}

# use_proxies makes the proxies that are kept count for this script as well, under the names that curl and wget know.
use_proxies() {
	for v in http_proxy https_proxy no_proxy; do
		value=$(sed -n "s/^\($v\|$(printf %s $v | tr a-z A-Z)\)='\(.*\)'\$/\2/p" "$stage/env" | head -n 1)
		[ -z "$value" ] || export "$v=$value"
	done
}

# --- the program

# here is the folder of this script, if it is a file and not a pipe.
here() {
	case $0 in
	*install.sh) (cd "$(dirname "$0")" 2>/dev/null && pwd -P) || : ;;
	esac
}

# find_source sets SOURCE to a folder or URL with the release's files, or to "checkout".
find_source() {
	version=${INSTALL_UMIAK_VERSION:-$UMIAK_RELEASE_VERSION}
	exact=${INSTALL_UMIAK_VERSION:-} # what the program has to be
	beside=$(here)
	if [ "${INSTALL_UMIAK_SKIP_DOWNLOAD:-}" = true ]; then
		SOURCE=$BIN_DIR
		[ -x "$PROGRAM" ] || die "$PROGRAM is not there, and INSTALL_UMIAK_SKIP_DOWNLOAD=true" \
			"put it there, or set INSTALL_UMIAK_SOURCE to a folder with the files of a release"
		return
	fi
	base=${INSTALL_UMIAK_BASE_URL:-}
	if [ -n "${INSTALL_UMIAK_SOURCE:-}" ]; then
		SOURCE=${INSTALL_UMIAK_SOURCE%/}
		[ -e "$SOURCE/SHA256SUMS" ] || die "INSTALL_UMIAK_SOURCE=$SOURCE has no SHA256SUMS in it: it is no release"
		return
	elif [ -n "$base" ]; then
		SOURCE=${base%/}
		SOURCE=${SOURCE#file://}
	elif [ -n "$beside" ] && [ -e "$beside/SHA256SUMS" ]; then
		SOURCE=$beside
	elif [ -n "$beside" ] && [ -e "$beside/go.mod" ] && [ -x "$beside/scripts/build" ]; then
		SOURCE=checkout
		return
	elif [ -n "$version" ]; then
		# The one of the last time, if one was given then.
		base=$(sed -n "s/^INSTALL_UMIAK_BASE_URL='\(.*\)'\$/\1/p" "$stage/env")
		SOURCE=${base:-https://github.com/umiak-io/umiak/releases/download}
		SOURCE=${SOURCE#file://}
	else
		die "this install.sh belongs to no release" "set INSTALL_UMIAK_BASE_URL, or run the install.sh of a release"
	fi
	case $SOURCE in
	http://* | https://*) [ -z "$version" ] || SOURCE=$SOURCE/$(printf %s "$version" | sed 's/+/%2B/g') exact=$version ;;
	/*) [ -e "$SOURCE/SHA256SUMS" ] || SOURCE=$SOURCE/$version exact=$version ;;
	*) die "INSTALL_UMIAK_BASE_URL=$SOURCE is not https://, http://, file:/// or an absolute path" ;;
	esac
}

# fetch NAME: into the stage.
fetch() {
	case $SOURCE in
	/*)
		[ -e "$SOURCE/$1" ] || die "$SOURCE/$1 is not there"
		# A FIFO would never end, and a link may lead to any file of root's.
		[ -f "$SOURCE/$1" ] && [ ! -L "$SOURCE/$1" ] || die "$SOURCE/$1 is not a file"
		cp "$SOURCE/$1" "$stage/$1" || die "cannot copy $SOURCE/$1 to $BIN_DIR"
		return
		;;
	esac
	url=$SOURCE/$1
	if has curl; then
		rc=0
		code=$(curl -sSL --retry 3 --connect-timeout 15 -o "$stage/$1" -w '%{http_code}' "$url" 2>"$stage/why") || rc=$?
		[ $rc != 23 ] || die "$url: no room for it in $BIN_DIR"
		[ $rc = 0 ] || die "$url: $(tail -n 1 "$stage/why")" "nothing was changed; run it again when the network is better"
		[ "$code" = 200 ] || die "$url: the server says $code" "is there a version ${version:-?} for $ARCH?"
	elif has wget; then
		wget -q -T 30 -O "$stage/$1" "$url" 2>"$stage/why" || die "$url: cannot be downloaded: $(tail -n 1 "$stage/why")" \
			"nothing was changed; is there a version ${version:-?} for $ARCH?"
	else
		die "there is neither curl nor wget" "install one of them, or set INSTALL_UMIAK_BASE_URL to a folder with the release's files"
	fi
}

sum_of() { sha256sum <"$1" | cut -d ' ' -f 1; }
listed() { awk -v f="$1" '$2 == f || $2 == "*" f { print $1; exit }' "$stage/SHA256SUMS"; }

# trust checks the list of sums by its signature.
trust() {
	if [ -n "${INSTALL_UMIAK_KEY_FILE:-}" ]; then
		[ -r "$INSTALL_UMIAK_KEY_FILE" ] || die "INSTALL_UMIAK_KEY_FILE=$INSTALL_UMIAK_KEY_FILE cannot be read"
		cat "$INSTALL_UMIAK_KEY_FILE" >"$stage/key.pem"
	elif [ -z "$RELEASE_KEY" ] && [ -r $OWN_KEY ]; then
		cat $OWN_KEY >"$stage/key.pem"
	else
		[ -n "$RELEASE_KEY" ] || die "this install.sh knows no key to check a release with" \
			"take the install.sh of the release, or set INSTALL_UMIAK_KEY_FILE"
		printf '%s\n' "$RELEASE_KEY" >"$stage/key.pem"
	fi
	has openssl || die "openssl is missing, which checks the release's signature" "install it: apt-get install openssl, apk add openssl, dnf install openssl"
	fetch SHA256SUMS
	fetch SHA256SUMS.sig
	openssl dgst -sha256 -verify "$stage/key.pem" -signature "$stage/SHA256SUMS.sig" "$stage/SHA256SUMS" >/dev/null 2>&1 ||
		die "the signature of $SOURCE/SHA256SUMS is wrong" "these files are not what the release's makers signed; nothing was changed"
}

# get_program sets NEW to the checked program, or to nothing when it is there already.
get_program() {
	NEW=''
	if [ "${INSTALL_UMIAK_SKIP_DOWNLOAD:-}" = true ]; then
		# umiak upgrade runs install.sh again; what came through a pipe cannot be kept.
		[ -z "$beside" ] || cp "$beside/install.sh" "$stage/install.sh"
		return
	fi
	if [ "$SOURCE" = checkout ]; then
		if [ -n "$dry" ]; then
			say "would build $NAME from $beside"
			return
		fi
		say "building $NAME from $beside"
		"$beside/scripts/build" || die "the build failed"
		cp "$beside/dist/$NAME" "$stage/$NAME"
		cp "$beside/install.sh" "$stage/install.sh"
	else
		trust
		fetch install.sh
		[ "$(sum_of "$stage/install.sh")" = "$(listed install.sh)" ] || die "install.sh of $SOURCE is damaged; nothing was changed"
		want=$(listed "$NAME-linux-$ARCH")
		[ -n "$want" ] || die "$SOURCE has no $NAME for $ARCH"
		[ ! -e "$PROGRAM" ] || [ "$(sum_of "$PROGRAM")" != "$want" ] || return 0
		if has xz && [ -n "$(listed "$NAME-linux-$ARCH.xz")" ] && { [ "${SOURCE#/}" = "$SOURCE" ] || [ -e "$SOURCE/$NAME-linux-$ARCH.xz" ]; }; then
			packed=$NAME-linux-$ARCH.xz unpack='xz -dc'
		else
			packed=$NAME-linux-$ARCH.gz unpack='gzip -dc'
		fi
		if [ -n "$dry" ]; then
			say "would install $packed of $SOURCE"
			return
		fi
		room
		say "getting $packed from $SOURCE"
		fetch "$packed"
		[ "$(sum_of "$stage/$packed")" = "$(listed "$packed")" ] ||
			die "$packed is damaged: its SHA-256 is not the one that the release's list has" "nothing was changed; run it again"
		$unpack "$stage/$packed" >"$stage/$NAME" || die "cannot unpack $packed in $BIN_DIR: is the disk full?"
		rm -f "$stage/$packed"
		[ "$(sum_of "$stage/$NAME")" = "$want" ] || die "$NAME is damaged after unpacking; nothing was changed"
	fi
	NEW=$stage/$NAME
	chmod 755 "$NEW"
	[ ! -e "$PROGRAM" ] || ! cmp -s "$NEW" "$PROGRAM" || NEW=''
}

# room looks for 350 MB, which the program needs packed and unpacked.
room() {
	free=$(df -Pk "$BIN_DIR" | awk 'NR == 2 { print $4 }')
	[ "$free" -ge 358400 ] || die "$BIN_DIR has $((free / 1024)) MiB free, and 350 are needed" "make room, or set INSTALL_UMIAK_BIN_DIR"
}

# try_program runs what will be installed on what will be its settings, and looks at the machine, before anything is touched.
try_program() {
	run=${NEW:-$PROGRAM}
	[ -e "$run" ] || return 0
	"$run" --version >"$stage/version" 2>&1 || die "$NAME does not run on this machine:" "$(tail -n 1 "$stage/version")"
	VERSION=$(sed 's/.* version //; s/ .*//' "$stage/version")
	# The signature says that a release is ours, not which one it is.
	[ -z "$exact" ] || [ "$VERSION" = "$exact" ] || die "$SOURCE has $VERSION where $exact should be; nothing was changed" \
		"whoever keeps that place has mixed up releases, or holds this machine back"
	skew
	mkdir -p "$stage/etc/config.yaml.d"
	cp "$stage/env" "$stage/etc/${ENVIRONMENT##*/}"
	[ ! -r $ETC/config.yaml ] || cp $ETC/config.yaml "$stage/etc/config.yaml"
	for f in "$ETC"/config.yaml.d/*.yaml "$ETC"/config.yaml.d/*.yml; do
		[ ! -r "$f" ] || [ "$f" = $OWN ] || cp "$f" "$stage/etc/config.yaml.d/"
	done
	[ -n "$only_program" ] || [ ! -r "$SOURCE/config/$role.yaml" ] || cp "$SOURCE/config/$role.yaml" "$stage/etc/config.yaml.d/${BUNDLED##*/}"
	[ -e "$stage/etc/config.yaml" ] || : >"$stage/etc/config.yaml"
	# A token that is not in its place yet is read where it is.
	sed "s,^token-file: '$ETC/token'\$,token-file: '$([ -s "$stage/token" ] && echo "$stage" || echo $ETC)/token'," "$stage/own" >"$stage/etc/config.yaml.d/50-install.yaml"
	DATA_DIR=$(as_service directories 2>/dev/null | head -n 1)
	if [ -z "$only_program" ] && [ -e "$SOURCE/BUNDLE.SHA256SUMS" ]; then
		# The program knows from the settings where the data are.
		as_service "bundle verify" --targets "$role" "$SOURCE" >"$stage/bundle" 2>"$stage/why" || [ -n "$dry" ] || die "$(sed "s,$stage/etc,$ETC,g" "$stage/why")" "nothing was changed"
	fi
	only=''
	[ "$role" = server ] || only=--agent-only
	rc=0
	# shellcheck disable=SC2086 # nothing where it is empty
	as_service check $only >"$stage/check" 2>&1 || rc=$?
	if [ $rc = 2 ] || grep -q '^umiak.*settings cannot be used' "$stage/check"; then
		sed "s,$stage/etc,$ETC,g" "$stage/check" >&2
		die "nothing was changed"
	fi
	if [ $rc != 0 ] && ! active; then
		cat "$stage/check" >&2
		[ "${INSTALL_UMIAK_SKIP_CHECK:-}" = true ] || die "this machine lacks what is marked above; nothing was changed" \
			"mend it and run this again, or set INSTALL_UMIAK_SKIP_CHECK=true"
	fi
}

# as_service COMMAND [ARG...] runs the new program on the settings that it will have, and on no others.
as_service() (
	# shellcheck disable=SC2046 # names of variables
	unset -v nothing $(env | sed -n 's/^\(UMIAK_[A-Z0-9_]*\)=.*/\1/p')
	does=$1
	shift
	# shellcheck disable=SC2086 # a command may be two words
	exec "$run" $does --config "$stage/etc/config.yaml" "$@"
)

# skew refuses steps between versions that Kubernetes does not support, more than one minor version forward or any back, and
# an older release of the same one, which whoever keeps the place of releases may have put there for its known faults.
skew() {
	[ -n "$NEW" ] && [ "${INSTALL_UMIAK_SKIP_CHECK:-}" != true ] || return 0
	old=''
	for f in "$PROGRAM" "${OLD:-$PROGRAM}"; do
		[ -n "$old" ] || [ ! -x "$f" ] || old=$("$f" --version 2>/dev/null | sed 's/.* version //; s/ .*//')
	done
	# Where somebody has taken the program away, the install.sh that came with it is left.
	[ -n "$old" ] || [ ! -r $AGAIN ] || old=$(sed -n "s/^UMIAK_RELEASE_VERSION='\(.*\)'\$/\1/p" $AGAIN)
	from=$(minor "$old") to=$(minor "$VERSION")
	[ -n "$from" ] && [ -n "$to" ] || return 0
	[ "$to" -ge "$from" ] || die "$VERSION is older than $old, which is here: its state cannot be read by what came before" \
		"restore a snapshot of that time instead, or set INSTALL_UMIAK_SKIP_CHECK=true"
	[ "$to" -le $((from + 1)) ] || die "from $old to $VERSION is more than one minor version" \
		"go to v1.$((from + 1)) first; Kubernetes supports no more in one step"
	[ "$to" = "$from" ] || return 0
	[ "${INSTALL_UMIAK_ALLOW_OLDER:-}" = true ] || ! older "$VERSION" "$old" || die "$VERSION is older than $old, which is here; nothing was changed" \
		"if that is meant, set INSTALL_UMIAK_ALLOW_OLDER=true, or run umiak upgrade --allow-older"
}

# older A B says whether release A came before B. Builds whose number is followed by words have no order.
older() { [ "$(patch "$1")" ] && [ "$(patch "$2")" ] && [ "$(patch "$1")" -lt "$(patch "$2")" ]; }

# patch is a number for v1.MINOR.PATCH+umiakN that grows with PATCH and N.
patch() { printf '%s\n' "$1" | sed -n 's/^v1\.[0-9]*\.\([0-9]*\)\(+umiak\([0-9]*\)\)\{0,1\}$/\1 \3/p' | awk '{ print $1 * 10000 + $2 }'; }

minor() { printf '%s\n' "$1" | sed -n 's/^v1\.\([0-9]*\)\..*/\1/p'; }

# --- what is written

# disk_of_unit: the service waits for the disk that has the data.
disk_of_unit() {
	[ -z "$DATA_DIR" ] || printf 'RequiresMountsFor="%s"\n' "$(printf %s "$DATA_DIR" | sed 's/[\\"]/\\&/g; s/%/%%/g')"
}

unit() {
	case $1 in
	server) run='umiak server' ;;
	agent) run=umiak-agent ;;
	*) die "there is a unit for server and for agent, not for $1" ;;
	esac
	cat <<-END
	[Unit]
	Description=Umiak, a Kubernetes node
	Documentation=https://github.com/umiak-io/umiak
	Wants=network-online.target
	# logind and the bus go down after umiak: by them it learns that the machine shuts down, and stops pods in order.
	After=network-online.target dbus.service systemd-logind.service
	StartLimitIntervalSec=0
	$(disk_of_unit)

	[Service]
	# Started means: the API answers and the node takes pods. That may take long on a slow card.
	Type=notify
	TimeoutStartSec=infinity
	EnvironmentFile=-$ENVIRONMENT
	# After a power loss in the middle of an update.
	ExecStartPre=-/bin/sh -c 'if [ -e $UNFINISHED ]; then exec /bin/sh $UNFINISHED; fi'
	ExecStartPre=-/bin/sh -c 'if [ -e $AGAIN ]; then exec /bin/sh $AGAIN --settings-read; fi'
	ExecStart=$BIN_DIR/$run
	Restart=always
	RestartSec=2
	TimeoutStopSec=60

	# Containers outlive umiak: stop, restart and upgrade end this process only, and the cgroups below its own are
	# not systemd's to clean.
	KillMode=process
	Delegate=yes
	TasksMax=infinity
	LimitNOFILE=1048576
	LimitNPROC=infinity
	# The process holds the cluster's keys.
	LimitCORE=0
	OOMScoreAdjust=-999

	[Install]
	WantedBy=multi-user.target
	END
}

openrc_script() {
	args=''
	[ "$role" != server ] || args=server
	cat <<-END
	#!/sbin/openrc-run
	# Containers outlive umiak: stop and restart end this process only.
	description="Umiak, a Kubernetes node"
	supervisor=supervise-daemon
	command=$PROGRAM
	command_args="$args"
	output_log=/var/log/$NAME.log
	error_log=/var/log/$NAME.log
	pidfile=/run/$NAME.pid
	respawn_delay=2
	respawn_max=0
	retry=TERM/60
	rc_cgroup_cleanup=no
	rc_ulimit="-n 1048576"

	depend() {
		want cgroups
		after localmount netmount net network-online firewall cgroups
	}

	start_pre() {
		# After a power loss in the middle of an update.
		[ ! -e $UNFINISHED ] || /bin/sh $UNFINISHED || :
		[ ! -e $AGAIN ] || /bin/sh $AGAIN --settings-read || :
		# The disk that has the data, if /etc/fstab names one.
		data=$(quote_sh "$DATA_DIR")
		disk=\$(awk -v d="\$data/" '!/^[ \t]*#/ && \$2 ~ /^\\/./ && index(d, \$2 "/") == 1 && length(\$2) > length(m) { m = \$2 } END { print m }' /etc/fstab 2>/dev/null)
		if [ -n "\$disk" ] && ! awk -v m="\$disk" '\$2 == m { found = 1 } END { exit !found }' /proc/mounts && ! mount "\$disk"; then
			eerror "\$disk, which has the data of umiak, cannot be mounted"
			return 1
		fi
		# logrotate looks after it while umiak runs, where there is one.
		[ ! -e /var/log/$NAME.log ] || [ "\$(wc -c </var/log/$NAME.log)" -lt 16777216 ] || mv -f /var/log/$NAME.log /var/log/$NAME.log.1
		if [ -r $ENVIRONMENT ]; then
			set -a
			. $ENVIRONMENT
			set +a
		fi
	}
	END
}

# place FILE TARGET MODE [watched] plans that a file goes where it belongs, if it is another than the one there. A service
# that does not read it, or sees it change, need not be restarted.
place() {
	if [ -e "$2" ] && cmp -s "$1" "$2"; then return; fi
	case $2 in *\'* | *"$TAB"*) die "$2: a name with a quote or a tab in it cannot be installed" ;; esac
	[ -n "${4:-}" ] || changed=yes
	n=$((n + 1))
	old=$stage/old.$n
	[ -z "${4:-}" ] || old=$2.umiak-old # large, and perhaps on another file system
	printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$old" >>"$stage/plan"
}

install_all() {
	: >"$stage/plan"
	n=0
	[ ! -s "$stage/token" ] || place "$stage/token" $ETC/token 600
	[ "$(wc -l <"$stage/own")" -lt 2 ] || place "$stage/own" $OWN 600
	[ ! -s "$stage/env" ] || place "$stage/env" $ENVIRONMENT 600
	[ -z "${INSTALL_UMIAK_KEY_FILE:-}" ] || [ ! -s "$stage/key.pem" ] || place "$stage/key.pem" $OWN_KEY 644
	[ ! -s "$stage/install.sh" ] || place "$stage/install.sh" $AGAIN 755 watched
	while IFS=$TAB read -r from to; do
		if [ "$to" = $BUNDLED ]; then place "$from" "$to" 600; else place "$from" "$to" 644 watched; fi
	done <"$stage/bundle"
	case $INIT in
	systemd) unit "$role" >"$stage/unit"; place "$stage/unit" "$UNIT" 600 ;;
	openrc)
		openrc_script >"$stage/unit"
		place "$stage/unit" "$UNIT" 755
		if [ -d /etc/logrotate.d ]; then
			printf '/var/log/%s.log {\n\tsize 16M\n\trotate 1\n\tcopytruncate\n\tmissingok\n}\n' $NAME >"$stage/logrotate"
			place "$stage/logrotate" /etc/logrotate.d/$NAME 644
		fi
		;;
	esac
	[ -z "$NEW" ] || place "$NEW" "$PROGRAM" 755
	{
		echo "$PROGRAM"
		[ -z "$UNIT" ] || echo "$UNIT"
		[ "$INIT" != openrc ] || printf '%s\n' /etc/logrotate.d/$NAME /var/log/$NAME.log /var/log/$NAME.log.1
	} >"$stage/installed"
	place "$stage/installed" $INSTALLED 600 # the last: without it the machine has none yet
	[ ! -s "$stage/plan" ] || switch
	[ -z "$NEW" ] || say "$PROGRAM is $VERSION"
}

# switch does what is planned. Everything is on the disk before the first file is replaced, and what takes it back as
# well: wherever the power goes, the next start has all of the old version or all of the new one.
switch() {
	[ -d $ETC ] || mkdir -m 700 $ETC
	echo "$$ $(born $$)" >$WORKING
	take_back >"$stage/undo"
	switching=yes
	while IFS=$TAB read -r _ to _ old; do
		[ ! -e "$to" ] || ln -f "$to" "$old" 2>/dev/null || cp -p "$to" "$old"
		[ ! -e "$to" ] || durable "$old" "${old%/*}"
	done <"$stage/plan"
	durable "$stage/plan" "$stage"
	# A machine that had none has nothing to go back to: it goes on with what is there, or this is run again.
	if [ -n "$was" ]; then
		cp "$stage/undo" $UNFINISHED.new
		durable $UNFINISHED.new
		mv $UNFINISHED.new $UNFINISHED
		durable $ETC
	fi
	while IFS=$TAB read -r from to mode _; do
		case $to in
		*/agent/images/*) as_umiak_does "${to%%/agent/images/*}" ;;
		*/server/manifests/*) as_umiak_does "${to%%/server/manifests/*}" ;;
		esac
		mkdir -p "${to%/*}"
		# The program was made in the folder where it goes. All else is copied: SELinux gives a file its label where it is made.
		case $from in
		"$stage/$NAME") ln -f "$from" "$to.umiak-new" 2>/dev/null || cp "$from" "$to.umiak-new" ;;
		*) cp "$from" "$to.umiak-new" ;;
		esac || die "cannot write $to: is the disk full?"
		chmod "$mode" "$to.umiak-new"
		durable "$to.umiak-new"
	done <"$stage/plan"
	while IFS=$TAB read -r _ to _; do
		mv -f "$to.umiak-new" "$to"
		! has restorecon || restorecon "$to" 2>/dev/null || :
	done <"$stage/plan"
	while IFS=$TAB read -r _ to _; do durable "${to%/*}"; done <"$stage/plan"
}

# as_umiak_does makes the folder of data, as umiak would if it were first. What is in it is root's alone.
as_umiak_does() { [ -d "$1" ] || (umask 022 && mkdir -p "$1"); }

# take_back prints a script that undoes the plan, also when it was cut off itself. It runs before umiak starts.
take_back() {
	cat <<-END
	# By install.sh. Takes back a version that has not become ready, unless the one who installs it is still there.
	if [ "\${1:-}" != now ] && { read -r pid since <$WORKING; } 2>/dev/null &&
		[ "\$(sed 's/.*) //' "/proc/\$pid/stat" 2>/dev/null | cut -d ' ' -f 20)" = "\$since" ]; then exit 0; fi
	echo 'umiak: taking back an installation that was not finished' >&2
	[ "\${1:-}" = now ] || rm -f $WORKING
	durable() { sync "\$@" 2>/dev/null || sync; }
	back() {
		[ -e "\$1" ] || return 0
		ln -f "\$1" "\$2.umiak-new" 2>/dev/null || cp -p "\$1" "\$2.umiak-new" || return 0
		durable "\$2.umiak-new"
		mv -f "\$2.umiak-new" "\$2"
		rm -f "\$2.umiak-new"
		! command -v restorecon >/dev/null 2>&1 || restorecon "\$2" 2>/dev/null || :
		durable "\${2%/*}"
	}
	END
	while IFS=$TAB read -r _ to _ old; do
		if [ -e "$to" ]; then echo "back '$old' '$to'"; else echo "rm -f '$to'"; fi
		echo "rm -f '$to.umiak-new'"
		[ -d "${to%/*}" ] || echo "rmdir -p '${to%/*}' 2>/dev/null"
	done <"$stage/plan"
	[ "$INIT" != systemd ] || echo 'systemctl daemon-reload'
	echo "rm -f $UNFINISHED"
	echo "durable $ETC"
	while IFS=$TAB read -r _ _ _ old; do echo "rm -f '$old'"; done <"$stage/plan"
	echo "rm -rf '$stage'"
}

# The program is these tools when it is called by their names.
tools() { if [ "$role" = server ]; then echo kubectl crictl ctr; else echo crictl ctr; fi; }

# our_link FILE says whether it is a link that this script made.
our_link() { [ -L "$1" ] && case $(readlink "$1") in umiak | umiak-agent) ;; *) false ;; esac; }

# links_wanted prints skip, force or nothing: what was given now or is kept.
links_wanted() { echo "${INSTALL_UMIAK_SYMLINK:-$(sed -n "s/^INSTALL_UMIAK_SYMLINK='\(.*\)'\$/\1/p" "$stage/env")}"; }

# new_links prints the links to make beside the program.
new_links() {
	for tool in $(tools); do
		link=$BIN_DIR/$tool
		[ ! -e "$link" ] && [ ! -L "$link" ] || continue # a link of ours, or another's file
		[ "$(links_wanted)" = force ] || ! has "$tool" || continue
		echo "$link"
	done
}

link_tools() {
	[ "$(links_wanted)" != skip ] || return 0
	for link in $(new_links); do
		ln -s "$NAME" "$link" || warn "cannot make the link $link"
	done
	for tool in $(tools); do
		if has "$tool" && ! our_link "$(command -v "$tool")"; then
			say "$tool is $(command -v "$tool"), which is not Umiak's; Umiak's is $PROGRAM $tool"
		fi
	done
}

# good ends the time in which it can be taken back.
good() {
	switching=''
	if [ -n "$OLD" ] && [ "$OLD" != "$PROGRAM" ] && [ -e "$PROGRAM" ]; then # another INSTALL_UMIAK_BIN_DIR than before
		for tool in kubectl crictl ctr; do ! our_link "${OLD%/*}/$tool" || rm -f "${OLD%/*}/$tool"; done
		rm -f "$OLD"
	fi
	link_tools
	[ -s "$stage/plan" ] || return 0
	rm -f $UNFINISHED
	durable $ETC
	while IFS=$TAB read -r _ _ _ old; do rm -f "$old"; done <"$stage/plan"
}

roll_back() {
	switching=''
	warn "putting back what was there before"
	sh "$stage/undo" now 2>/dev/null || :
	trap - HUP INT TERM # the files are those of before; waiting for the service may be broken off
	if [ -n "$was" ]; then
		if restart; then warn "the old version runs again"; else warn "the old version cannot be started: look at its log"; fi
		return 0
	fi
	# The first installation: nothing of it stays but what the service itself wrote.
	case $INIT in
	systemd) systemctl disable --now $NAME >/dev/null 2>&1 || : ;;
	openrc) rc-service $NAME stop >/dev/null 2>&1 || :; rc-update -q del $NAME >/dev/null 2>&1 || : ;;
	esac
	rmdir "$ETC/config.yaml.d" "$ETC" 2>/dev/null || :
}

# --- the service

active() {
	case $INIT in
	systemd) systemctl is-active --quiet $NAME ;;
	openrc) rc-service -q $NAME status >/dev/null 2>&1 ;;
	*) false ;;
	esac
}

# restart returns when the service is ready.
restart() {
	case $INIT in
	systemd) systemctl restart $NAME 2>/dev/null ;;
	openrc)
		rc-service $NAME restart >/dev/null || return 1
		until "$PROGRAM" status >/dev/null 2>&1; do
			active || return 1
			sleep 1
		done
		;;
	esac
}

log_tail() {
	case $INIT in
	systemd) journalctl -u $NAME -n 15 --no-pager -o cat 2>/dev/null || : ;;
	openrc) tail -n 15 /var/log/$NAME.log 2>/dev/null || : ;;
	esac
}

start() {
	if [ "$INIT" = none ]; then
		good
		say "there is neither systemd nor OpenRC here; run it by your own means: $PROGRAM $([ "$role" = agent ] || echo server)"
		return
	fi
	[ "$INIT" != systemd ] || [ -z "$changed" ] || systemctl daemon-reload
	if [ "${INSTALL_UMIAK_SKIP_ENABLE:-}" = true ]; then
		good
		return
	fi
	case $INIT in
	systemd) systemctl is-enabled --quiet $NAME 2>/dev/null || systemctl -q enable $NAME ;;
	openrc) [ -e "/etc/runlevels/default/$NAME" ] || rc-update -q add $NAME default ;;
	esac
	if [ "${INSTALL_UMIAK_SKIP_START:-}" = true ]; then
		good
		return
	fi
	if [ -z "$changed" ] && active && [ -r $IN_USE ] && [ "$(cat $IN_USE)" != "$(settings_sum)" ]; then
		say "the settings are others than those with which $NAME was started"
		changed=yes
	fi
	[ "${INSTALL_UMIAK_FORCE_RESTART:-}" != true ] || changed=yes
	if [ -z "$changed" ] && active; then
		good
		if [ -s "$stage/plan" ]; then say "$NAME $VERSION runs already; what was new is in place"; else say "$NAME $VERSION runs already, nothing was to be done"; fi
		exit 0
	fi
	say "starting $NAME"
	limit=${INSTALL_UMIAK_TIMEOUT:-300} waited=0
	restart &
	pid=$!
	while kill -0 $pid 2>/dev/null && [ "$waited" -lt "$limit" ]; do
		sleep 1
		waited=$((waited + 1))
		[ $((waited % 10)) != 0 ] || say "waiting for the node, $waited s"
	done
	if kill $pid 2>/dev/null; then
		log_tail >&2
		[ -n "$was" ] || good # a slow machine, or a server that is away: it goes on by itself
		die "$NAME did not become ready in $limit seconds; its last words are above" \
			"$(command_name "$NAME") status says what it waits for"
	fi
	if ! wait $pid; then
		log_tail >&2
		die "$NAME ended instead of becoming ready; its last words are above"
	fi
	good
	say "ready after $waited s"
}

# command_name NAME: how people call a program: by its name if the shell finds it, else by its path.
command_name() {
	if [ "$(command -v "$1" 2>/dev/null)" = "$BIN_DIR/$1" ]; then echo "$1"; else echo "$BIN_DIR/$1"; fi
}

next_step() {
	[ "$INIT" != none ] && [ "${INSTALL_UMIAK_SKIP_START:-}${INSTALL_UMIAK_SKIP_ENABLE:-}" = "" ] || return 0
	if [ "$role" = agent ]; then
		say "this node has joined; on a server: umiak kubectl get nodes"
		return
	fi
	me=$(command_name umiak)
	say "next: $me kubectl get nodes"
	say "to add a node, run there with what \`$me token create\` prints:"
	say "  curl -sfL https://get.umiak.io | UMIAK_URL=https://$(uname -n):6443 UMIAK_TOKEN=TOKEN sh -"
}

report() {
	say "$role on $ARCH, init system $INIT"
	say "would write: $PROGRAM $UNIT $INSTALLED"
	[ "$(links_wanted)" = skip ] || for link in $(new_links); do say "would link: $link"; done
	cut -f 2 "$stage/bundle" 2>/dev/null | while read -r to; do say "would write: $to"; done
	[ "$(wc -l <"$stage/own")" -lt 2 ] || { say "$OWN:"; sed 's/^/  /' "$stage/own"; }
	[ ! -s "$stage/env" ] || { say "$ENVIRONMENT:"; sed 's/=.*/=…/; s/^/  /' "$stage/env"; }
}

main "$@"
